// State dict entries of TensorEngine: live views out, checked copies in.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "offload/torch/state_image.h"
#include "offload/torch/tensor_engine.h"
#include "offload/torch/tensor_types.h"
#include "outboard/error.h"
#include "quant/random.h"

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

bool is_split_type(const at::Tensor& master) {
  return master.scalar_type() == at::kShort || master.scalar_type() == at::kChar;
}

// The bits of a bf16 weight as the upper half of fp32 bits.
at::Tensor upper_half(const at::Tensor& weight) {
  return weight.to(at::kCPU).contiguous().view(at::kShort).to(at::kInt) * 65536;
}

// What a split master holds of any master: of another split one its bits, of an fp32 one the lower
// 16, because bits = (high << 16) + low modulo 2^32, in whichever order weight and master are
// loaded.
at::Tensor low_half(const at::Tensor& master, const at::Tensor& weight) {
  if (master.scalar_type() == at::kShort) return master;
  if (master.scalar_type() == at::kChar) return master.to(at::kShort) * 256;
  const at::Tensor bits = master.to(at::kCPU, at::kFloat).contiguous().view(at::kInt);
  // A tie that was rounded down, to an even weight: what is missing is one more than fits. The
  // lower bits alone would mean as much below the weight.
  const at::Tensor is_below = (bits - upper_half(weight)).eq(0x8000);
  return bits.bitwise_and(0xFFFF).to(at::kShort).masked_fill(is_below, 0x7FFF);
}

// The same for split8: the nearest of its values, which a split8 master is itself.
at::Tensor low_byte(const at::Tensor& master, const at::Tensor& weight) {
  const at::Tensor low = low_half(master, weight).to(at::kInt);
  return (low + 128).bitwise_right_shift(8).clamp_max(127).to(at::kChar);
}

at::Tensor joined(const at::Tensor& weight, const at::Tensor& low) {
  return (upper_half(weight) + low.to(at::kCPU).contiguous().to(at::kInt)).view(at::kFloat);
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

std::vector<int64_t> TensorEngine::state_sizes(size_t parameter, size_t i) const {
  const ParameterSpec& spec = *engine_->view(parameter).spec;
  if (rule_info(*spec.rule).states[i].shape == StateShape::kElements) {
    return slots_[parameter].tensor.sizes().vec();
  }
  return {static_cast<int64_t>(state_elements(spec, i))};
}

at::Tensor TensorEngine::state_view(size_t parameter, size_t i) const {
  const ParameterView view = engine_->view(parameter);
  void* const data = view.states[i].codes;
  if (rule_info(*view.spec->rule).states[i].shape == StateShape::kElements) {
    return view_of(parameter, data, scalar_type_of(view.spec->formats[i].format));
  }
  return bytes_of(parameter, data, state_elements(*view.spec, i) * sizeof(float)).view(at::kFloat);
}

at::Tensor TensorEngine::bytes_of(size_t parameter, void* data, size_t bytes) const {
  const auto options = at::TensorOptions().dtype(at::kByte).device(state_device(parameter));
  if (bytes == 0) return at::empty({0}, options);
  return at::from_blob(
      data, {static_cast<int64_t>(bytes)}, [owner = engine_](void*) {}, options);
}

TensorMap TensorEngine::state(size_t parameter, StateLayout layout) {
  const ParameterView view = engine_->view(parameter);
  if (view.step == 0 || !view.spec->rule) return {};
  TensorMap result{
      {std::string(kStep), at::scalar_tensor(static_cast<double>(view.step), at::kFloat)}};
  const RuleInfo& rule = rule_info(*view.spec->rule);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    const bool exists = view.states[i].codes != nullptr ||
                        (view.spec->elements == 0 && rule.states[i].needed_by < 0);
    if (!exists) continue;
    const StateFormat& format = view.spec->formats[i];
    if (format.block_elements == 0) {
      result.emplace_back(rule.states[i].key, state_view(parameter, i));
      continue;
    }
    const StateImage image(view.states[i], format, view.spec->elements, state_device(parameter));
    if (layout == StateLayout::kDecoded) {
      result.emplace_back(rule.states[i].key, image.decoded(slots_[parameter].tensor));
    } else {
      const size_t scale_bytes = format.scale_count(view.spec->elements) * sizeof(float);
      PackedState::append(
          rule.states[i].key, format,
          bytes_of(parameter, view.states[i].codes, format.code_bytes(view.spec->elements)),
          bytes_of(parameter, view.states[i].scales, scale_bytes).view(at::kFloat),
          slots_[parameter].tensor, result);
    }
  }
  if (view.master != nullptr) {
    result.emplace_back(kMaster,
                        view_of(parameter, view.master, scalar_type_of(view.spec->master_format)));
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
  const auto packed = PackedState::find_all(state, rule, slot.tensor, slot.name);
  for (const auto& [key, value] : state) {
    if (PackedState::is_part(key)) continue;
    const size_t index = state_index(rule, key);
    const bool is_state = index < rule.states.size();
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
    const bool has_type = value.is_floating_point() || (key == kMaster && is_split_type(value));
    const std::vector<int64_t> sizes =
        is_state ? state_sizes(parameter, index) : slot.tensor.sizes().vec();
    if (value.layout() != at::kStrided || value.sizes() != sizes || !has_type) {
      fail(ErrorKind::kValue, kWho, "state \"", key, "\" of ", slot.name, " is ", describe(value),
           " and ", at::IntArrayRef(sizes), " is expected, the parameter being ",
           describe(slot.tensor),
           "; shapes must agree and states be floating point: load the state dict of this model");
    }
  }
  for (size_t i = 0; i < rule.states.size(); ++i) {
    const StateInfo& info = rule.states[i];
    const auto forms = (find(state, info.key) != nullptr ? 1 : 0) +
                       std::ranges::count(packed, i, &PackedState::state);
    if (forms > 1) {
      fail(ErrorKind::kValue, kWho, "state of ", slot.name, " has \"", info.key, "\" as fp32 and ",
           "compressed; leave one of them out");
    }
    if (info.needed_by < 0 && forms == 0) {
      fail(ErrorKind::kValue, kWho, "state of ", slot.name, " lacks \"", info.key, "\", which ",
           rule.name, " needs; load a complete state dict of the same optimizer class");
    }
  }
}

void TensorEngine::write_state(size_t parameter, size_t i, const at::Tensor& value, int64_t step) {
  const ParameterView view = engine_->view(parameter);
  const StateFormat& format = view.spec->formats[i];
  if (format.block_elements == 0) {
    state_view(parameter, i).copy_(value);
    return;
  }
  const uint64_t id = view.spec->has_random_id ? view.spec->random_id : parameter;
  StateImage image(view.states[i], format, view.spec->elements, state_device(parameter));
  image.encode(value, slots_[parameter].tensor,
               {.key = random_key(options_.seed, id),
                .step = static_cast<uint32_t>(step),
                .stream = static_cast<uint32_t>(i + 1)});
}

void TensorEngine::write_state(size_t parameter, size_t i, const PackedState& packed,
                               int64_t step) {
  const ParameterView view = engine_->view(parameter);
  const StateFormat& format = view.spec->formats[i];
  if (packed.format() != format || !packed.has_order_of(slots_[parameter].tensor)) {
    write_state(parameter, i, packed.decoded(), step);
    return;
  }
  StateImage image(view.states[i], format, view.spec->elements, state_device(parameter));
  image.restore(packed.stored());
}

void TensorEngine::write_states(size_t parameter, const TensorMap& state, int64_t step) {
  const ParameterView before = engine_->view(parameter);
  const RuleInfo& rule = rule_info(*before.spec->rule);
  const auto packed =
      PackedState::find_all(state, rule, slots_[parameter].tensor, slots_[parameter].name);
  // Optional states that the file holds come to exist.
  std::vector<double> hyper = before.spec->hyper;
  for (size_t i = 0; i < rule.states.size(); ++i) {
    const StateInfo& info = rule.states[i];
    const bool is_held =
        find(state, info.key) != nullptr || std::ranges::count(packed, i, &PackedState::state) > 0;
    if (info.needed_by >= 0 && is_held) hyper[static_cast<size_t>(info.needed_by)] = 1;
  }
  engine_->ensure_states(parameter, hyper);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    const at::Tensor* value = find(state, rule.states[i].key);
    if (value != nullptr) write_state(parameter, i, *value, step);
  }
  for (const PackedState& one : packed) write_state(parameter, one.state(), one, step);
}

void TensorEngine::write_master(size_t parameter, const at::Tensor& value) {
  const ParameterView view = engine_->view(parameter);
  const MasterFormat format = view.spec->master_format;
  const at::Tensor master = view_of(parameter, view.master, scalar_type_of(format));
  const at::Tensor weight = slots_[parameter].tensor.detach();
  if (format == MasterFormat::kSplit) {
    master.copy_(low_half(value, weight));
  } else if (format == MasterFormat::kSplit8) {
    master.copy_(low_byte(value, weight));
  } else {
    master.copy_(is_split_type(value) ? joined(weight, low_half(value, weight)) : value);
  }
}

void TensorEngine::load_state(size_t parameter, const TensorMap& state) {
  // Rules whose torch counterpart counts no steps (SGD): a buffer that exists is not the first one.
  const at::Tensor* found = find(state, kStep);
  const int64_t step = found != nullptr ? found->item<int64_t>() : 1;
  write_states(parameter, state, step);
  const ParameterView view = engine_->view(parameter);
  const at::Tensor* master = find(state, kMaster);
  const bool has_master = master != nullptr && view.master != nullptr;
  if (has_master) write_master(parameter, *master);
  set_step(parameter, step, has_master);
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
    const StateFormat& format = view.spec->formats[i];
    const size_t elements = state_elements(*view.spec, i);
    const size_t scales = format.scale_count(elements);
    bytes_of(parameter, view.states[i].codes, format.code_bytes(elements)).zero_();
    bytes_of(parameter, view.states[i].scales, scales * sizeof(float)).zero_();
  }
  set_step(parameter, 0, false);
}

void TensorEngine::convert_states(const std::vector<size_t>& parameters,
                                  const std::vector<FormatWish>& formats,
                                  size_t min_quantized_elements) {
  const at::NoGradGuard no_grad;
  std::vector<StateFormatArray> wanted;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const ParameterSpec& spec = *engine_->view(parameters[i]).spec;
    if (!spec.rule) check_generic_format(formats.at(i), spec.name);
    wanted.push_back(spec.rule ? formats_of(rule_info(*spec.rule), formats.at(i), spec.elements,
                                            min_quantized_elements)
                               : spec.formats);
  }
  if (has_captured_ && !parameters.empty()) {
    fail(ErrorKind::kState, kWho,
         "captured graphs hold the states as they are; convert them before ",
         "the capture, or load the state dict into a new optimizer");
  }
  if (!parameters.empty()) synchronize();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const size_t parameter = parameters[i];
    const ParameterView view = engine_->view(parameter);
    if (!view.spec->rule || view.spec->formats == wanted[i]) continue;
    TensorMap kept;
    for (auto& [key, value] : state(parameter, StateLayout::kExact)) {
      if (key != kStep && key != kMaster) kept.emplace_back(key, value.clone());
    }
    engine_->set_formats(parameter, wanted[i]);
    write_states(parameter, kept, view.step);
  }
}

std::string TensorEngine::state_format(size_t parameter) const {
  const ParameterSpec& spec = *engine_->view(parameter).spec;
  return spec.rule ? describe(rule_info(*spec.rule), spec.formats) : "fp32";
}

}  // namespace outboard
