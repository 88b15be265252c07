// State dict entries of TensorEngine: live views out, checked copies in.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "offload/torch/tensor_engine.h"
#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {

namespace {

constexpr std::string_view kStep = "step";
constexpr std::string_view kMaster = "master";

const at::Tensor* find(const TensorMap& state, std::string_view key) {
  const auto found = std::ranges::find(state, key, &TensorMap::value_type::first);
  return found == state.end() ? nullptr : &found->second;
}

size_t state_index(const RuleInfo& rule, std::string_view key) {
  const auto found = std::ranges::find(rule.states, key, &StateInfo::key);
  return static_cast<size_t>(found - rule.states.begin());
}

// The low half of an fp32 master: its lower 16 bits, because bits = (high << 16) + low modulo 2^32.
at::Tensor low_half(const at::Tensor& master) {
  return master.to(at::kFloat).contiguous().view(at::kInt).bitwise_and(0xFFFF).to(at::kShort);
}

at::Tensor joined(const at::Tensor& weight, const at::Tensor& low) {
  const at::Tensor high = weight.to(at::kCPU).contiguous().view(at::kShort).to(at::kInt);
  return (high * 65536 + low.to(at::kCPU).contiguous().to(at::kInt)).view(at::kFloat);
}

}  // namespace

at::Device TensorEngine::state_device(size_t parameter) const {
  return engine_->view(parameter).state_memory == Memory::kDevice ? *device_ : at::Device(at::kCPU);
}

at::Tensor TensorEngine::view_of(size_t parameter, void* data, at::ScalarType type) const {
  const at::Tensor& tensor = slots_[parameter].tensor;
  const bool is_state_on_device = state_device(parameter) != at::Device(at::kCPU);
  const auto options =
      at::TensorOptions().dtype(type).device(is_state_on_device ? *device_ : at::Device(at::kCPU));
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), options);
  return at::from_blob(
      data, tensor.sizes(), tensor.strides(), [owner = engine_](void*) {}, options);
}

TensorMap TensorEngine::state(size_t parameter) {
  const ParameterView view = engine_->view(parameter);
  if (view.step == 0 || !view.spec->rule) return {};
  TensorMap result{
      {std::string(kStep), at::scalar_tensor(static_cast<double>(view.step), at::kFloat)}};
  const RuleInfo& rule = rule_info(*view.spec->rule);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    const bool exists = view.states[i].codes != nullptr ||
                        (view.spec->elements == 0 && rule.states[i].needed_by < 0);
    if (!exists) continue;
    result.emplace_back(rule.states[i].key, view_of(parameter, view.states[i].codes,
                                                    scalar_type_of(view.spec->formats[i].format)));
  }
  if (view.master != nullptr) {
    const bool is_split = view.spec->master_format == MasterFormat::kSplit;
    result.emplace_back(kMaster,
                        view_of(parameter, view.master, is_split ? at::kShort : at::kFloat));
  }
  return result;
}

void TensorEngine::check_state(size_t parameter, const TensorMap& state) const {
  const Slot& slot = slots_[parameter];
  const ParameterSpec& spec = *engine_->view(parameter).spec;
  if (state.empty()) return;
  if (!spec.rule) {
    fail(ErrorKind::kState, kWho, slot.name, " has no native rule; its state is the caller's");
  }
  const RuleInfo& rule = rule_info(*spec.rule);
  for (const auto& [key, value] : state) {
    const bool is_state = state_index(rule, key) < rule.states.size();
    if (key == kStep) {
      const double step = value.numel() == 1 ? value.item<double>() : -1;
      if (step < 0 || std::floor(step) != step || step > 4294967295.0) {
        fail(ErrorKind::kValue, kWho, "state \"step\" of ", slot.name, " is ", describe(value),
             " with value ", step, "; it must be one whole number of steps");
      }
      continue;
    }
    if (!is_state && key != kMaster) {
      fail(ErrorKind::kValue, kWho, "state of ", slot.name, " has the unknown entry \"", key,
           "\"; ", rule.name, " does not keep it: load a state dict of the same optimizer class");
    }
    const bool has_type =
        value.is_floating_point() || (key == kMaster && value.scalar_type() == at::kShort);
    if (value.layout() != at::kStrided || value.sizes() != slot.tensor.sizes() || !has_type) {
      fail(ErrorKind::kValue, kWho, "state \"", key, "\" of ", slot.name, " is ", describe(value),
           " but the parameter is ", describe(slot.tensor),
           "; shapes must agree and states be floating point: load the state dict of this model");
    }
  }
  for (const StateInfo& info : rule.states) {
    if (info.needed_by < 0 && find(state, info.key) == nullptr) {
      fail(ErrorKind::kValue, kWho, "state of ", slot.name, " lacks \"", info.key, "\", which ",
           rule.name, " needs; load a complete state dict of the same optimizer class");
    }
  }
}

void TensorEngine::load_state(size_t parameter, const TensorMap& state) {
  const ParameterView before = engine_->view(parameter);
  const RuleInfo& rule = rule_info(*before.spec->rule);
  // Optional states that the file holds come to exist.
  std::vector<double> hyper = before.spec->hyper;
  for (const StateInfo& info : rule.states) {
    if (info.needed_by >= 0 && find(state, info.key) != nullptr) hyper[info.needed_by] = 1;
  }
  engine_->ensure_states(parameter, hyper);
  const ParameterView view = engine_->view(parameter);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    const at::Tensor* value = find(state, rule.states[i].key);
    if (value == nullptr) continue;
    view_of(parameter, view.states[i].codes, scalar_type_of(view.spec->formats[i].format))
        .copy_(*value);
  }
  const at::Tensor* master = find(state, kMaster);
  const bool has_master = master != nullptr && view.master != nullptr;
  if (has_master && view.spec->master_format == MasterFormat::kSplit) {
    const bool is_low = master->scalar_type() == at::kShort;
    view_of(parameter, view.master, at::kShort).copy_(is_low ? *master : low_half(*master));
  } else if (has_master) {
    const bool is_low = master->scalar_type() == at::kShort;
    view_of(parameter, view.master, at::kFloat)
        .copy_(is_low ? joined(slots_[parameter].tensor.detach(), *master) : *master);
  }
  // Rules whose torch counterpart counts no steps (SGD): a buffer that exists is not the first one.
  const at::Tensor* step = find(state, kStep);
  engine_->load_step(parameter, step != nullptr ? step->item<int64_t>() : 1, has_master);
}

void TensorEngine::load_states(const std::vector<size_t>& parameters,
                               const std::vector<TensorMap>& states) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters.size(); ++i) check_state(parameters[i], states[i]);
  if (!engine_) return;
  engine_->synchronize();
  notice_changed_weights();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (states[i].empty()) {
      reset_state(parameters[i]);
    } else {
      load_state(parameters[i], states[i]);
    }
  }
}

void TensorEngine::reset_state(size_t parameter) {
  engine_->synchronize();
  const ParameterView view = engine_->view(parameter);
  for (size_t i = 0; i < kMaxStates; ++i) {
    if (view.states[i].codes == nullptr) continue;
    view_of(parameter, view.states[i].codes, scalar_type_of(view.spec->formats[i].format)).zero_();
  }
  engine_->load_step(parameter, 0, false);
}

}  // namespace outboard
