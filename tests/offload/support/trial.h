// What one end-to-end trial trains: parameters of every kind, gradients as a pure function of
// (seed, step, micro-batch, parameter, element, weight), hyper-parameters that change. Nothing here
// knows the engine: the plain and the overlapped trainer both read it.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_TRIAL_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_TRIAL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "outboard/engine.h"
#include "quant/random.h"
#include "quant/rounding.h"
#include "tests/support/reference_step.h"
#include "tests/support/rule_cases.h"

namespace outboard::testing {

inline constexpr size_t kTrialChunkElements = kNormSegmentElements;
inline constexpr uint32_t kTrialGroups = 2;

/// Memory of fixed size at an address that vectors like. The content is not initialised.
inline std::shared_ptr<void> aligned_memory(size_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  return {::operator new(bytes == 0 ? 1 : bytes, kAlignment),
          [](void* owned) { ::operator delete(owned, kAlignment); }};
}

inline std::shared_ptr<void> zeroed_memory(size_t bytes) {
  auto memory = aligned_memory(bytes);
  std::memset(memory.get(), 0, bytes);
  return memory;
}

inline float load(DType type, const void* from, size_t i) { return reference_load(type, from, i); }

inline void store(DType type, void* to, size_t i, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(to)[i] = value;
  } else {
    static_cast<uint16_t*>(to)[i] =
        type == DType::kBF16 ? quant::bf16_nearest(value) : quant::f16_nearest(value);
  }
}

/// How often clipping scales the gradients down.
enum class Clip { kOff, kNever, kSometimes, kAlways };

struct TrialParameter {
  DType type = DType::kF32;
  MasterFormat master_format = MasterFormat::kWeight;
  StateFormats formats = {};
  size_t elements = 0;
  Placement placement = Placement::kHost;
  Memory memory = Memory::kDevice;

  [[nodiscard]] bool is_offloaded() const {
    return placement == Placement::kHost && memory == Memory::kDevice;
  }
  [[nodiscard]] size_t weight_bytes() const { return elements * bytes_of(type); }
};

/// A value that one element of one gradient takes instead of its own.
struct Spoiled {
  int step = -1;
  int micro_batch = 0;
  size_t parameter = 0;
  size_t element = 0;
  float value = 0;
};

struct Trial {
  uint64_t seed = 1;
  RuleId rule = RuleId::kAdamW;
  bool offload_gradients = false;
  int accumulation = 1;
  Clip clip = Clip::kOff;
  bool skips_nonfinite = true;
  float loss_scale = 1;
  int steps = 4;
  int threads = 2;
  int slots = 1;
  Schedule schedule = Schedule::kAtStep;
  bool poisons_in_flight = false;
  bool sends_every_backward = false;  ///< of streamed parameters, as if no backward were announced
                                      ///< to be the last
  bool moves = false;                 ///< parameters are moved between host and stream
  bool has_unused = true;             ///< some parameters get no gradient in some micro-batches
  std::vector<TrialParameter> parameters;
  Spoiled spoiled = {};

  [[nodiscard]] uint64_t draw(uint64_t a, uint64_t b, uint64_t c) const {
    return splitmix64(splitmix64(splitmix64(seed ^ a) + b) ^ c);
  }
  /// Whether `parameter` gets a gradient in this micro-batch.
  [[nodiscard]] bool is_used(int step, int micro_batch, size_t parameter) const {
    const auto when = static_cast<uint64_t>(step * 16 + micro_batch);
    return !has_unused || draw(11, when, parameter) % 4 != 0;
  }
  /// Where a parameter is in this step.
  [[nodiscard]] Placement placement(int step, size_t parameter) const {
    const TrialParameter& kind = parameters[parameter];
    const bool stays = kind.memory == Memory::kHost || kind.placement == Placement::kResident;
    if (!moves || stays || step < 2) return kind.placement;
    const bool is_streamed = draw(17, static_cast<uint64_t>(step / 2), parameter) % 2 == 0;
    return is_streamed ? Placement::kStreamed : Placement::kHost;
  }
  /// Whether each micro-batch's gradient goes to the host by itself.
  [[nodiscard]] bool sends_each(int step, size_t parameter) const {
    return offload_gradients && parameters[parameter].memory == Memory::kDevice &&
           placement(step, parameter) == Placement::kHost;
  }
  /// Whether updates in backward are for good, so that weights change while it runs.
  [[nodiscard]] bool updates_for_good() const {
    return schedule == Schedule::kInBackward && offload_gradients && !skips_nonfinite &&
           clip == Clip::kOff && loss_scale == 1;
  }
  [[nodiscard]] int last_use(int step, size_t parameter) const {
    for (int micro_batch = accumulation - 1; micro_batch >= 0; --micro_batch) {
      if (is_used(step, micro_batch, parameter)) return micro_batch;
    }
    return -1;
  }
  /// 0.05 and 5 in turn: far below and far above what kSometimes clips at.
  [[nodiscard]] float amplitude(int step) const { return step % 2 == 0 ? 0.05f : 5.0f; }
  [[nodiscard]] double max_gradient_norm() const {
    switch (clip) {
      case Clip::kOff:
        return 0;
      case Clip::kNever:
        return 1e6;
      case Clip::kSometimes:
        return 250;
      case Clip::kAlways:
        return 0.01;
    }
    return 0;
  }
  /// Hyper-parameters in catalogue order. Flags stay; learning rate and decay follow a schedule.
  [[nodiscard]] std::vector<double> hyper(int step, uint32_t group) const {
    const RuleInfo& info = rule_info(rule);
    std::vector<double> values, plain;
    for (size_t i = 0; i < info.hyper_parameters.size(); ++i) {
      const HyperParameter& parameter = info.hyper_parameters[i];
      double value = parameter.default_value;
      if (parameter.is_flag) value = static_cast<double>(draw(12, group, i) % 2);
      if (parameter.key == "lr") value = 0.002 * (1 + step % 3) * (1 + group);
      if (parameter.key == "weight_decay") value = 0.01 * step;
      if (parameter.key == "max_unorm") value = group == 0 ? 0 : 0.01;
      if (parameter.key == "momentum") value = draw(13, group, i) % 3 == 0 ? 0 : 0.9;
      plain.push_back(parameter.key == "lr" ? value : parameter.default_value);
      values.push_back(value);
    }
    return info.check(values) == nullptr ? values : plain;
  }
  [[nodiscard]] uint32_t group_of(size_t parameter) const {
    return static_cast<uint32_t>(draw(14, 0, parameter) % kTrialGroups);
  }

  [[nodiscard]] float first_weight(size_t parameter, size_t i) const {
    return uniform(draw(15, parameter, i));
  }
  /// The gradient of one micro-batch, before it is rounded to the parameter's type. It depends on
  /// the weight, so that a forward that saw a wrong weight is seen in every later value.
  [[nodiscard]] float gradient(int step, int micro_batch, size_t parameter, size_t i,
                               float weight) const {
    if (step == spoiled.step && micro_batch == spoiled.micro_batch &&
        parameter == spoiled.parameter && i == spoiled.element) {
      return spoiled.value;
    }
    const uint64_t when = static_cast<uint64_t>(step * 16 + micro_batch) << 20 | parameter;
    const float noise = uniform(draw(16, when, i));
    return (noise * amplitude(step) + 0.0625f * weight) * loss_scale;
  }
  /// Writes (micro-batch is the first) or adds in the parameter's type.
  void backward(int step, int micro_batch, bool is_first, size_t parameter, const void* weight,
                void* target) const {
    const DType type = parameters[parameter].type;
    for (size_t i = 0; i < parameters[parameter].elements; ++i) {
      const float value = gradient(step, micro_batch, parameter, i, load(type, weight, i));
      if (is_first) {
        store(type, target, i, value);
        continue;
      }
      float rounded = 0;
      if (type == DType::kF32) {
        rounded = value;
      } else {
        uint16_t code = 0;
        store(type, &code, 0, value);
        rounded = load(type, &code, 0);
      }
      store(type, target, i, load(type, target, i) + rounded);
    }
  }

 private:
  static float uniform(uint64_t bits) {
    return static_cast<float>(static_cast<int32_t>(bits >> 40) - (1 << 23)) * 0x1p-23f;
  }
};

/// A parameter of every kind of weight and master, alternately with fp32 and bf16 state, large
/// ones of several chunks and tiny ones; besides, residents and one in host memory.
inline std::vector<TrialParameter> parameters_of_every_kind(uint64_t seed) {
  using enum MasterFormat;
  const std::pair<DType, MasterFormat> kinds[] = {
      {DType::kF32, kWeight},      {DType::kBF16, kSplit}, {DType::kBF16, kF32},
      {DType::kBF16, kStochastic}, {DType::kF16, kF32},    {DType::kBF16, kSplit8}};
  std::vector<TrialParameter> parameters;
  for (const auto& [type, master] : kinds) {
    const uint64_t draw = splitmix64(seed + parameters.size());
    TrialParameter parameter{.type = type, .master_format = master};
    for (const bool is_large : {true, false}) {
      const bool is_low = ((draw >> (is_large ? 0 : 1)) & 1) != 0;
      parameter.formats = state_formats_named(is_low ? "bf16" : "fp32");
      parameter.elements = is_large ? kTrialChunkElements + (draw >> 8) % (2 * kTrialChunkElements)
                                    : 1 + (draw >> 32) % 600;
      parameters.push_back(parameter);
    }
  }
  parameters[1].elements = 3 * kTrialChunkElements;  // ends on a chunk's edge
  parameters[0].elements = 0;
  const size_t first_resident = parameters.size();
  parameters.push_back(parameters[8]);
  parameters.back().placement = Placement::kResident;
  parameters.push_back(parameters[10]);
  parameters.back().placement = Placement::kResident;
  parameters.push_back(parameters[2]);
  parameters.back().placement = Placement::kResident;
  parameters.push_back(parameters[1]);
  parameters.back().elements = 300;
  parameters.back().placement = Placement::kResident;
  parameters.push_back(parameters[4]);
  parameters.back().memory = Memory::kHost;
  // A resident's gradient comes last: nothing but the step itself waits for it.
  std::swap(parameters[0], parameters[first_resident]);
  return parameters;
}

/// The same with every offloaded parameter, or every second one, streamed.
inline std::vector<TrialParameter> streamed(std::vector<TrialParameter> parameters, bool all) {
  for (size_t p = 0; p < parameters.size(); ++p) {
    if (parameters[p].is_offloaded() && (all || p % 2 == 0)) {
      parameters[p].placement = Placement::kStreamed;
    }
  }
  return parameters;
}

inline ParameterSpec spec_of(const Trial& trial, size_t index, void* weight) {
  const TrialParameter& parameter = trial.parameters[index];
  const RuleInfo& info = rule_info(trial.rule);
  ParameterSpec spec{.name = "parameter " + std::to_string(index),
                     .weight = weight,
                     .memory = parameter.memory,
                     .type = parameter.type,
                     .elements = parameter.elements,
                     .placement = parameter.placement,
                     .rule = trial.rule,
                     .master_format = parameter.master_format,
                     .rows = test_rows(parameter.elements),
                     .hyper = trial.hyper(0, trial.group_of(index))};
  for (size_t k = 0; k < info.states.size(); ++k) {
    spec.formats[k] = format_of(info.states[k], parameter.formats);
  }
  return spec;
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_TRIAL_H_
