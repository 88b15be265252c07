// The optimizer over the TensorEngine: groups, steps, clipping. State dicts and files are in
// optimizer_state.cc.
#include "outboard/torch/cpu_offload_optimizer.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_set>

#include "offload/torch/hyper.h"
#include "offload/torch/optimizer_impl.h"
#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {
namespace {

bool fits(const std::string& pattern, const std::string& name) {
  return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

EngineOptions engine_options(const CPUOffloadOptions& given) {
  if (given.block_size < 0 || given.min_quantized_elements < 0) {
    fail(ErrorKind::kValue, kWho, "block_size is ", given.block_size,
         ", min_quantized_elements is ", given.min_quantized_elements, "; give at least 0");
  }
  if (given.placement == Placement::kResident || given.min_stream_elements < 0) {
    fail(ErrorKind::kValue, kWho, "placement is kResident or min_stream_elements is ",
         given.min_stream_elements,
         "; give kHost or kStreamed, and at least 0: parameters are kept "
         "resident by name or size, or all of them by LowBitOptimizer");
  }
  if (given.threads < 0 || given.min_offload_elements < 0 || given.chunk_elements == 0) {
    fail(ErrorKind::kValue, kWho, "threads is ", given.threads, ", min_offload_elements is ",
         given.min_offload_elements, ", chunk_elements is ", given.chunk_elements,
         "; give numbers of at least 0, 0 and 1");
  }
  if (!(given.max_gradient_norm >= 0)) {
    fail(ErrorKind::kValue, kWho, "max_gradient_norm is ", given.max_gradient_norm,
         "; give a positive number, or 0 for no clipping");
  }
  return {.offload_gradients = given.offload_gradients,
          .skip_nonfinite = given.skip_nonfinite,
          .schedule = given.schedule,
          .threads = given.threads,
          .pin_memory = given.pin_memory,
          .seed = given.seed,
          .chunk_elements = given.chunk_elements};
}

}  // namespace

CPUOffloadOptimizer::Impl::Impl(CPUOffloadOptions given)
    : options(std::move(given)), engine(engine_options(options), options.simulated_device) {}

size_t CPUOffloadOptimizer::Impl::index_of(const at::Tensor& tensor) const {
  const auto found = indices.find(tensor.unsafeGetTensorImpl());
  if (found == indices.end()) {
    fail(ErrorKind::kValue, kWho, "a tensor of ", tensor.sizes(), " is no parameter of this ",
         "optimizer; give one of those it was made with");
  }
  return found->second;
}

void CPUOffloadOptimizer::Impl::check_group(const torch::optim::OptimizerParamGroup& group) const {
  if (group.params().empty()) {
    fail(ErrorKind::kValue, kWho, "parameter group ", group_sizes.size(),
         " has no parameters; give at least one");
  }
  std::unordered_set<const c10::TensorImpl*> seen;
  for (const at::Tensor& tensor : group.params()) {
    const c10::TensorImpl* key = tensor.unsafeGetTensorImpl();
    if (!tensor.defined() || !seen.insert(key).second || indices.contains(key)) {
      fail(ErrorKind::kValue, kWho, "parameter ", seen.size() - 1, " of group ", group_sizes.size(),
           " is ", tensor.defined() ? "given twice" : "undefined", "; give each parameter once");
    }
  }
  if (!rule || !group.has_options()) return;
  if (rule_of(group.options()) != *rule) {
    fail(ErrorKind::kType, kWho, "parameter group ", group_sizes.size(), " has options of ",
         rule_info(rule_of(group.options())).name, " and the optimizer is ", rule_info(*rule).name,
         "; give options of the same type");
  }
}

std::string CPUOffloadOptimizer::Impl::name_of(const at::Tensor& tensor, size_t group,
                                               size_t position) const {
  for (const auto& named : options.names) {
    if (named.value().is_same(tensor)) return named.key();
  }
  return "param_groups[" + std::to_string(group) + "][" + std::to_string(position) + "]";
}

FormatWish CPUOffloadOptimizer::Impl::format_of(const std::string& name) const {
  for (const StateFormatOf& wish : options.state_formats) {
    if (fits(wish.pattern, name)) {
      return {wish.state_format, static_cast<size_t>(wish.block_size)};
    }
  }
  return {options.state_format, static_cast<size_t>(options.block_size)};
}

RuleId CPUOffloadOptimizer::Impl::rule_of_matrices() const {
  return options.factored_second_moment ? RuleId::kAdamWFactored : *rule;
}

void CPUOffloadOptimizer::Impl::check_factored(
    const torch::optim::OptimizerOptions& group_options) const {
  if (!options.factored_second_moment) return;
  if (rule != RuleId::kAdamW) {
    fail(ErrorKind::kValue, kWho, "factored_second_moment is for AdamW, and the optimizer ",
         rule ? "is " : "has no native rule", rule ? rule_info(*rule).name : "",
         "; leave it false, or give AdamWOptions");
  }
  check_hyper(rule_info(rule_of_matrices()), hyper_of(group_options), kWho);
}

void CPUOffloadOptimizer::Impl::register_group(const torch::optim::OptimizerParamGroup& group) {
  check_group(group);
  check_factored(group.options());
  TensorGroup added{.tensors = group.params(),
                    .names = {},
                    .placements = {},
                    .rules = {},
                    .hyper = rule ? hyper_of(group.options()) : std::vector<double>(),
                    .state_formats = {},
                    .min_quantized_elements = static_cast<size_t>(options.min_quantized_elements),
                    .master = options.master};
  std::vector<RuleId> rules;
  for (size_t i = 0; i < group.params().size(); ++i) {
    const at::Tensor& tensor = group.params()[i];
    const bool is_wanted = std::ranges::any_of(
        options.resident, [&](const at::Tensor& wish) { return wish.is_same(tensor); });
    added.names.push_back(name_of(tensor, group_sizes.size(), i));
    if (rule) rules.push_back(is_matrix(tensor) ? rule_of_matrices() : *rule);
    added.rules.emplace_back(rule ? rule_info(rules.back()).name : "");
    added.state_formats.push_back(format_of(added.names.back()));
    const bool is_streamed = options.placement == Placement::kStreamed && rule;
    const bool is_resident = is_wanted || tensor.numel() < options.min_offload_elements ||
                             (is_streamed && tensor.numel() < options.min_stream_elements);
    added.placements.push_back(is_resident   ? Placement::kResident
                               : is_streamed ? Placement::kStreamed
                                             : Placement::kHost);
  }
  const size_t first = engine.add_parameters(added);
  if (options.schedule != Schedule::kAtStep) {
    // Models register their layers in the order in which they use them, nearly always.
    std::vector<size_t> order(engine.parameter_count());
    std::iota(order.begin(), order.end(), size_t{0});
    engine.set_use_order(order);
  }
  if (generic) generic->add(first, group);
  for (size_t i = 0; i < group.params().size(); ++i) {
    indices[group.params()[i].unsafeGetTensorImpl()] = first + i;
    parameter_names.push_back(added.names[i]);
  }
  parameter_rules.insert(parameter_rules.end(), rules.begin(), rules.end());
  group_sizes.push_back(group.params().size());
}

std::vector<size_t> CPUOffloadOptimizer::Impl::matching(const std::string& pattern) const {
  std::vector<size_t> result;
  for (size_t i = 0; i < parameter_names.size(); ++i) {
    if (fits(pattern, parameter_names[i])) result.push_back(i);
  }
  return result;
}

std::vector<uint32_t> CPUOffloadOptimizer::Impl::update_groups(const ParamGroups& groups) {
  while (group_sizes.size() < groups.size()) register_group(groups[group_sizes.size()]);
  std::vector<uint32_t> group_of(engine.parameter_count());
  for (size_t number = 0; number < group_sizes.size(); ++number) {
    if (number >= groups.size() || groups[number].params().size() != group_sizes[number]) {
      fail(ErrorKind::kState, kWho, "parameter group ", number, " had ", group_sizes[number],
           " parameters and was changed; use add_param_group(), or make the optimizer anew");
    }
    for (const at::Tensor& tensor : groups[number].params()) {
      group_of[index_of(tensor)] = static_cast<uint32_t>(number);
    }
  }
  return group_of;
}

std::vector<std::vector<double>> CPUOffloadOptimizer::Impl::hyper_of_groups(
    const ParamGroups& groups) const {
  std::vector<std::vector<double>> result;
  for (const auto& group : groups) {
    result.push_back(rule ? hyper_of(group.options()) : std::vector<double>());
  }
  return result;
}

double CPUOffloadOptimizer::Impl::max_norm() const {
  double least = std::numeric_limits<double>::infinity();
  for (const double wish : {options.max_gradient_norm, clip_once}) {
    if (wish > 0) least = std::min(least, wish);
  }
  return std::isinf(least) ? 0 : least;
}

void CPUOffloadOptimizer::Impl::warn() {
  for (const std::string& text : engine.take_warnings()) TORCH_WARN(text);
}

CPUOffloadOptimizer::ParamGroups CPUOffloadOptimizer::single(
    std::vector<torch::Tensor> parameters) {
  return {torch::optim::OptimizerParamGroup(std::move(parameters))};
}

CPUOffloadOptimizer::CPUOffloadOptimizer(ParamGroups groups, Factory factory,
                                         CPUOffloadOptions options)
    : CPUOffloadOptimizer(std::move(groups), nullptr, std::move(factory), std::move(options)) {}

CPUOffloadOptimizer::CPUOffloadOptimizer(ParamGroups groups,
                                         std::unique_ptr<torch::optim::OptimizerOptions> base,
                                         Factory factory, CPUOffloadOptions options)
    : Optimizer(ParamGroups(), std::move(base)), impl_(std::make_unique<Impl>(std::move(options))) {
  if (groups.empty()) {
    fail(ErrorKind::kValue, kWho, "there are no parameters; give at least one");
  }
  if (defaults_) {
    impl_->rule = rule_of(*defaults_);
  } else {
    impl_->generic = std::make_unique<GenericUpdate>(std::move(factory), impl_->engine);
    defaults_ = impl_->generic->defaults();
  }
  for (const auto& group : groups) add_param_group(group);
  for (const torch::Tensor& tensor : impl_->options.resident) (void)impl_->index_of(tensor);
  for (const StateFormatOf& wish : impl_->options.state_formats) {
    if (!impl_->matching(wish.pattern).empty()) continue;
    fail(ErrorKind::kValue, kWho, "state_formats has the pattern \"", wish.pattern,
         "\", which fits none of ", impl_->parameter_names.size(),
         " parameters; names are known only if options.names was given");
  }
}

CPUOffloadOptimizer::~CPUOffloadOptimizer() = default;

void CPUOffloadOptimizer::add_param_group(const torch::optim::OptimizerParamGroup& group) {
  impl_->update_groups(param_groups_);
  impl_->check_group(group);
  Optimizer::add_param_group(group);
  try {
    impl_->register_group(param_groups_.back());
  } catch (...) {
    param_groups_.pop_back();
    throw;
  }
  impl_->warn();
}

torch::Tensor CPUOffloadOptimizer::step(LossClosure closure) {
  const at::NoGradGuard no_grad;
  torch::Tensor loss;
  if (closure) {
    const at::AutoGradMode with_gradients(true);
    loss = closure();
  }
  const std::vector<uint32_t> group_of = impl_->update_groups(param_groups_);
  if (impl_->is_capturable) {
    impl_->engine.enqueue_step(impl_->hyper_of_groups(param_groups_), group_of, {});
    return loss;
  }
  const bool is_taken = impl_->engine.begin_step(impl_->hyper_of_groups(param_groups_), group_of,
                                                 impl_->max_norm(), {}, {});
  impl_->clip_once = 0;
  try {
    if (is_taken && impl_->generic) {
      impl_->generic->step(param_groups_, group_of, impl_->engine.stats().clip_factor);
    }
  } catch (...) {
    impl_->engine.finish_step();
    throw;
  }
  impl_->engine.finish_step();
  impl_->warn();
  return loss;
}

void CPUOffloadOptimizer::make_capturable() {
  if (impl_->options.max_gradient_norm > 0 || impl_->options.skip_nonfinite) {
    fail(ErrorKind::kValue, kWho, "capturable steps cannot have max_gradient_norm (",
         impl_->options.max_gradient_norm, ") or skip_nonfinite (", impl_->options.skip_nonfinite,
         "), about which the host decides; leave them off");
  }
  impl_->engine.make_capturable();
  impl_->is_capturable = true;
}

void CPUOffloadOptimizer::send_hyperparameters() {
  if (!impl_->is_capturable) {
    fail(ErrorKind::kState, kWho, "update_hyperparameters() is for capturable optimizers; ",
         "without it step() reads the groups");
  }
  const std::vector<uint32_t> group_of = impl_->update_groups(param_groups_);
  impl_->engine.update_hyper(impl_->hyper_of_groups(param_groups_), group_of, {});
}

void CPUOffloadOptimizer::before_forward(const std::vector<torch::Tensor>& parameters) {
  const std::vector<uint32_t> group_of = impl_->update_groups(param_groups_);
  impl_->engine.announce_step(impl_->hyper_of_groups(param_groups_), group_of, impl_->max_norm());
  wait(parameters);
}

void CPUOffloadOptimizer::wait(const std::vector<torch::Tensor>& parameters) {
  std::vector<size_t> indices;
  for (const torch::Tensor& tensor : parameters) indices.push_back(impl_->index_of(tensor));
  impl_->engine.wait_weights(indices);
}

void CPUOffloadOptimizer::zero_grad(bool set_to_none) {
  // Gradients that are kept are written to; updates on the device may still read them.
  if (!set_to_none) impl_->engine.wait_weights({});
  impl_->engine.discard_gradients();
  impl_->clip_once = 0;
  Optimizer::zero_grad(set_to_none);
}

double CPUOffloadOptimizer::clip_grad_norm_(double max_norm) {
  if (!(max_norm > 0)) {
    fail(ErrorKind::kValue, kWho, "max_norm is ", max_norm, "; give a positive number");
  }
  if (impl_->is_capturable) {
    fail(ErrorKind::kState, kWho,
         "clip_grad_norm_ needs the host, and this optimizer is capturable; ",
         "use torch::nn::utils::clip_grad_norm_ in the graph");
  }
  const double norm = impl_->engine.gradient_norm({});
  impl_->clip_once = impl_->clip_once > 0 ? std::min(max_norm, impl_->clip_once) : max_norm;
  return norm;
}

void CPUOffloadOptimizer::convert_state(const std::string& state_format, int64_t block_size,
                                        const std::string& pattern) {
  if (block_size < 0) {
    fail(ErrorKind::kValue, kWho, "block_size is ", block_size, "; give at least 0");
  }
  impl_->update_groups(param_groups_);
  const std::vector<size_t> chosen = impl_->matching(pattern);
  if (chosen.empty()) {
    fail(ErrorKind::kValue, kWho, "the pattern \"", pattern, "\" fits no parameter; ",
         "give one that does, or none for all");
  }
  const FormatWish wish{state_format, static_cast<size_t>(block_size)};
  impl_->engine.convert_states(chosen, std::vector<FormatWish>(chosen.size(), wish),
                               static_cast<size_t>(impl_->options.min_quantized_elements));
}

std::string CPUOffloadOptimizer::state_format_of(const torch::Tensor& parameter) const {
  return impl_->engine.state_format(impl_->index_of(parameter));
}

void CPUOffloadOptimizer::synchronize() { impl_->engine.synchronize(); }

OffloadStats CPUOffloadOptimizer::stats() const {
  return {.memory = impl_->engine.memory(), .step = impl_->engine.stats()};
}

std::string CPUOffloadOptimizer::placement_of(const torch::Tensor& parameter) const {
  return impl_->engine.placement(impl_->index_of(parameter));
}

CPUOffloadOptimizer::Accumulation::Accumulation(CPUOffloadOptimizer& optimizer)
    : optimizer_(optimizer) {
  ++optimizer_.impl_->accumulating;
  optimizer_.impl_->engine.set_accumulating(true);
}

CPUOffloadOptimizer::Accumulation::~Accumulation() {
  const int left = --optimizer_.impl_->accumulating;
  optimizer_.impl_->engine.set_accumulating(left > 0);
}

}  // namespace outboard
