// Steps, and state structs to named tensors and back; see generic_update.h.
#include "offload/torch/generic_update.h"

#include <ATen/ATen.h>
#include <torch/optim/lbfgs.h>
#include <torch/serialize/archive.h>

#include <algorithm>
#include <sstream>

#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {
namespace {

using torch::optim::Optimizer;
using torch::optim::OptimizerOptions;
using torch::optim::OptimizerParamState;
using Values = std::map<std::string, c10::IValue>;

constexpr const char* kStep = "step";
constexpr const char* kMaster = "master";

// A state struct tells its members only by writing them into an archive.
Values values_of(const OptimizerParamState& state) {
  torch::serialize::OutputArchive written;
  state.serialize(written);
  std::stringstream bytes;
  written.save_to(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(bytes);
  Values values;
  for (const std::string& key : archive.keys()) archive.read(key, values[key]);
  return values;
}

void set_values(OptimizerParamState& state, const Values& values) {
  torch::serialize::OutputArchive written;
  for (const auto& [key, value] : values) written.write(key, value);
  std::stringstream bytes;
  written.save_to(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(bytes);
  state.serialize(archive);
}

at::Tensor tensor_of(const std::string& key, const c10::IValue& value) {
  if (value.isTensor()) return value.toTensor();
  const double number = value.isBool()  ? static_cast<double>(value.toBool())
                        : value.isInt() ? static_cast<double>(value.toInt())
                                        : value.toDouble();
  return at::scalar_tensor(number, key == kStep ? at::kFloat : at::kDouble);
}

// `example` says as what the struct holds the value.
c10::IValue value_of(const at::Tensor& tensor, const c10::IValue& example,
                     const at::Tensor& parameter) {
  if (example.isBool()) return tensor.item<double>() != 0;
  if (example.isInt()) return tensor.item<int64_t>();
  if (example.isDouble()) return tensor.item<double>();
  const at::Tensor& like = example.toTensor();
  // Per-element state lies beside the parameter and has its type, as in torch.
  const auto options = like.dim() == 0            ? like.options()
                       : like.is_floating_point() ? parameter.options()
                                                  : parameter.options().dtype(like.dtype());
  return at::empty_like(tensor, options).copy_(tensor);
}

}  // namespace

GenericUpdate::GenericUpdate(Factory factory, TensorEngine& engine)
    : factory_(std::move(factory)), engine_(engine) {
  if (!factory_) fail(ErrorKind::kValue, kWho, "the factory is empty; give a function");
  const auto probe = make({at::zeros({2})}, nullptr);
  if (dynamic_cast<torch::optim::LBFGS*>(probe.get()) != nullptr) {
    fail(ErrorKind::kValue, kWho, "LBFGS cannot be offloaded: it searches along a line over all ",
         "parameters at once; use AdamWOptions");
  }
}

std::shared_ptr<Optimizer> GenericUpdate::make(std::vector<at::Tensor> tensors,
                                               const OptimizerOptions* options) const {
  const size_t count = tensors.size();
  std::shared_ptr<Optimizer> optimizer = factory_(std::move(tensors));
  if (!optimizer || optimizer->param_groups().size() != 1 ||
      optimizer->param_groups()[0].params().size() != count) {
    fail(ErrorKind::kValue, kWho, "the factory did not return an optimizer of one group with the ",
         count, " tensors it was given; return for example ",
         "std::make_unique<torch::optim::RMSprop>(tensors)");
  }
  if (options != nullptr) optimizer->param_groups()[0].set_options(options->clone());
  return optimizer;
}

std::unique_ptr<OptimizerOptions> GenericUpdate::defaults() const {
  return std::as_const(*make({at::zeros({2})}, nullptr)).defaults().clone();
}

void GenericUpdate::add(size_t first, const torch::optim::OptimizerParamGroup& group) {
  std::vector<size_t> in_place;
  for (size_t i = 0; i < group.params().size(); ++i) {
    if (engine_.placement(first + i) != "host") {
      in_place.push_back(i);
      continue;
    }
    const at::Tensor master = engine_.host_weight(first + i);
    members_[first + i] = {make({master}, &group.options()), master, /*is_on_host=*/true};
  }
  const size_t number = groups_++;
  if (in_place.empty()) return;
  std::vector<at::Tensor> tensors;
  for (const size_t i : in_place) tensors.push_back(group.params()[i]);
  in_place_[number] = make(tensors, &group.options());
  for (const size_t i : in_place) {
    members_[first + i] = {in_place_[number], group.params()[i], /*is_on_host=*/false};
  }
}

void GenericUpdate::step(const Groups& groups, const std::vector<uint32_t>& group_of,
                         double factor) {
  for (auto& [number, optimizer] : in_place_) {
    optimizer->param_groups()[0].set_options(groups[number].options().clone());
    step_in_place(*optimizer, factor);
  }
  // Backward makes the last parameters' gradients first.
  std::vector<size_t> active = engine_.active_parameters();
  std::ranges::sort(active, std::greater<>());
  for (const size_t i : active) {
    if (members_.at(i).is_on_host) step_on_host(i, groups[group_of[i]].options());
  }
}

void GenericUpdate::step_on_host(size_t parameter, const OptimizerOptions& options) {
  Member& member = members_.at(parameter);
  member.optimizer->param_groups()[0].set_options(options.clone());
  member.tensor.mutable_grad() = engine_.host_gradient(parameter);
  member.optimizer->step();
  member.tensor.mutable_grad().reset();
  engine_.return_weight(parameter);
}

void GenericUpdate::step_in_place(Optimizer& optimizer, double factor) {
  std::vector<std::pair<at::Tensor, at::Tensor>> kept;
  for (at::Tensor& tensor : optimizer.param_groups()[0].params()) {
    if (factor == 1 || !tensor.grad().defined()) continue;
    kept.emplace_back(tensor, tensor.grad());
    tensor.mutable_grad() = tensor.grad() * factor;
  }
  const auto put_back = [&] {
    for (auto& [tensor, gradient] : kept) tensor.mutable_grad() = gradient;
  };
  try {
    optimizer.step();
  } catch (...) {
    put_back();
    throw;
  }
  put_back();
}

TensorMap GenericUpdate::state(size_t parameter) const {
  const Member& member = members_.at(parameter);
  const auto& states = std::as_const(*member.optimizer).state();
  const auto found = states.find(member.tensor.unsafeGetTensorImpl());
  if (found == states.end()) return {};
  TensorMap result;
  Values values = values_of(*found->second);
  // As in torch's dicts the count comes first.
  if (const auto step = values.find(kStep); step != values.end()) {
    result.emplace_back(kStep, tensor_of(kStep, step->second));
    values.erase(step);
  }
  for (const auto& [key, value] : values) result.emplace_back(key, tensor_of(key, value));
  if (member.is_on_host) result.emplace_back(kMaster, member.tensor);
  return result;
}

std::unique_ptr<OptimizerParamState> GenericUpdate::example_state(
    const OptimizerOptions& options) const {
  at::NoGradGuard no_grad;
  at::Tensor probe = at::ones({2});
  probe.mutable_grad() = at::ones({2});
  const auto optimizer = make({probe}, &options);
  optimizer->step();
  const auto& states = std::as_const(*optimizer).state();
  return states.empty() ? nullptr : states.begin()->second->clone();
}

void GenericUpdate::check(size_t parameter, const TensorMap& state,
                          const OptimizerOptions& options) const {
  const at::Tensor& tensor = members_.at(parameter).tensor;
  const auto example = example_state(options);
  Values missing = example ? values_of(*example) : Values{};
  for (const auto& [key, value] : state) {
    const auto found = missing.find(key);
    const bool is_number = key != kMaster && (found == missing.end() || !found->second.isTensor() ||
                                              found->second.toTensor().dim() == 0);
    if (key != kMaster && found == missing.end()) {
      fail(ErrorKind::kValue, kWho, "state of parameter ", parameter, " has the unknown entry \"",
           key, "\"; load a checkpoint of the same optimizer class and options");
    }
    if (is_number ? value.numel() != 1 : value.sizes() != tensor.sizes()) {
      fail(ErrorKind::kValue, kWho, "state \"", key, "\" of parameter ", parameter, " is ",
           describe(value), " but the parameter is ", describe(tensor),
           "; load the checkpoint of this model");
    }
    if (key != kMaster) missing.erase(found);
  }
  if (!state.empty() && !missing.empty()) {
    fail(ErrorKind::kValue, kWho, "state of parameter ", parameter, " lacks \"",
         missing.begin()->first, "\"; load a checkpoint of the same optimizer class and options");
  }
}

void GenericUpdate::load(size_t parameter, const TensorMap& state,
                         const OptimizerOptions& options) {
  at::NoGradGuard no_grad;
  Member& member = members_.at(parameter);
  auto& states = member.optimizer->state();
  void* key_of_tensor = member.tensor.unsafeGetTensorImpl();
  if (state.empty()) {
    states.erase(key_of_tensor);
    const auto fresh = make({member.tensor}, &options);  // Adagrad's state exists from the start
    if (!fresh->state().empty()) states[key_of_tensor] = fresh->state().begin()->second->clone();
    return;
  }
  auto loaded = example_state(options);
  Values values;
  if (loaded) values = values_of(*loaded);
  for (const auto& [key, value] : state) {
    if (key == kMaster) {
      if (member.is_on_host) member.tensor.copy_(value);
    } else {
      values.at(key) = value_of(value, values.at(key), member.tensor);
    }
  }
  if (!loaded) return;
  set_values(*loaded, values);
  states[key_of_tensor] = std::move(loaded);
}

}  // namespace outboard
