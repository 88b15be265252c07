// The trial without overlap: one thread, one pass over whole parameters with the update kernel
// itself, norms in scalar code of their own. What the engine must equal bit by bit.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_PLAIN_TRAINER_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_PLAIN_TRAINER_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "cpu_kernels/step.h"
#include "tests/offload/support/outcome.h"
#include "tests/offload/support/trial.h"
#include "tests/support/reference_norms.h"

namespace outboard::testing {

/// One segment: 64 lanes by fma, then a halving tree.
inline float plain_segment(const void* gradient, DType type, size_t first, size_t last) {
  float lanes[64] = {};
  for (size_t i = first; i < last; ++i) {
    const float x = load(type, gradient, i);
    lanes[(i - first) % 64] = std::fma(x, x, lanes[(i - first) % 64]);
  }
  for (size_t k = 32; k > 0; k /= 2) {
    for (size_t i = 0; i < k; ++i) lanes[i] = lanes[i] + lanes[i + k];
  }
  return lanes[0];
}

inline double plain_sum_of_squares(const void* gradient, DType type, size_t elements) {
  double total = 0;
  for (size_t first = 0; first < elements; first += kNormSegmentElements) {
    total += static_cast<double>(
        plain_segment(gradient, type, first, std::min(first + kNormSegmentElements, elements)));
  }
  return total;
}

class PlainTrainer {
 public:
  explicit PlainTrainer(const Trial& trial) : trial_(trial) {
    for (size_t p = 0; p < trial.parameters.size(); ++p) parameters_.push_back(start(p));
  }

  Outcome run() {
    for (int step = 0; step < trial_.steps; ++step) train(step);
    for (const Parameter& parameter : parameters_) {
      ParameterOutcome result;
      const ParameterSpec& spec = parameter.spec;
      result.weight = bytes_at(spec.weight, spec.elements * bytes_of(spec.type));
      result.master =
          bytes_at(parameter.master.get(), spec.elements * bytes_of(spec.master_format));
      for (size_t k = 0; k < kMaxStates; ++k) {
        result.states[k] = state_bytes(spec, k, array_of(parameter, k));
      }
      result.step = parameter.step;
      outcome_.parameters.push_back(std::move(result));
    }
    return outcome_;
  }

 private:
  struct Parameter {
    ParameterSpec spec;
    std::shared_ptr<void> weight;
    std::shared_ptr<void> master;
    std::array<std::shared_ptr<void>, kMaxStates> states;
    std::array<std::shared_ptr<void>, kMaxStates> scales;
    std::shared_ptr<void> gradient;  ///< null: none in this step
    DType gradient_type = DType::kF32;
    int64_t step = 0;
  };

  [[nodiscard]] Parameter start(size_t index) const {
    Parameter parameter;
    const TrialParameter& kind = trial_.parameters[index];
    parameter.weight = aligned_memory(kind.weight_bytes());
    for (size_t i = 0; i < kind.elements; ++i) {
      store(kind.type, parameter.weight.get(), i, trial_.first_weight(index, i));
    }
    parameter.spec = spec_of(trial_, index, parameter.weight.get());
    const size_t master_bytes = padded_elements(kind.elements) * bytes_of(kind.master_format);
    if (master_bytes > 0) parameter.master = zeroed_memory(master_bytes);
    for (size_t i = 0; i < kind.elements && kind.master_format == MasterFormat::kF32; ++i) {
      static_cast<float*>(parameter.master.get())[i] = load(kind.type, parameter.weight.get(), i);
    }
    make_states(parameter, parameter.spec.hyper);
    return parameter;
  }

  static StateArray array_of(const Parameter& parameter, size_t k) {
    return {parameter.states[k].get(), static_cast<float*>(parameter.scales[k].get()),
            parameter.spec.formats[k].block_elements};
  }

  void make_states(Parameter& parameter, const std::vector<double>& hyper) const {
    const RuleInfo& info = rule_info(trial_.rule);
    for (size_t k = 0; k < info.states.size(); ++k) {
      const int needed_by = info.states[k].needed_by;
      const bool is_needed = needed_by < 0 || hyper[static_cast<size_t>(needed_by)] != 0;
      const StateFormat& format = parameter.spec.formats[k];
      const size_t elements = state_elements(parameter.spec, k);
      const size_t bytes = format.code_bytes(elements);
      if (!is_needed || parameter.states[k] != nullptr || bytes == 0) continue;
      parameter.states[k] = zeroed_memory(bytes);
      const size_t scales = format.scale_count(elements);
      if (scales > 0) parameter.scales[k] = zeroed_memory(scales * sizeof(float));
    }
  }

  void accumulate(Parameter& parameter, int step, int micro_batch, size_t index) const {
    const TrialParameter& kind = trial_.parameters[index];
    const bool is_first = parameter.gradient == nullptr;
    if (is_first) {
      parameter.gradient = aligned_memory(kind.elements * sizeof(float));
      parameter.gradient_type = kind.type;
    }
    if (is_first || !trial_.sends_each(step, index)) {
      trial_.backward(step, micro_batch, is_first, index, parameter.weight.get(),
                      parameter.gradient.get());
      return;
    }
    auto sum = aligned_memory(kind.elements * sizeof(float));
    auto addend = aligned_memory(kind.elements * sizeof(float));
    trial_.backward(step, micro_batch, true, index, parameter.weight.get(), addend.get());
    for (size_t i = 0; i < kind.elements; ++i) {
      static_cast<float*>(sum.get())[i] =
          load(parameter.gradient_type, parameter.gradient.get(), i) +
          load(kind.type, addend.get(), i);
    }
    parameter.gradient = sum;
    parameter.gradient_type = DType::kF32;
  }

  void train(int step) {
    for (int micro_batch = 0; micro_batch < trial_.accumulation; ++micro_batch) {
      for (size_t p = 0; p < parameters_.size(); ++p) {
        if (trial_.parameters[p].elements == 0 || !trial_.is_used(step, micro_batch, p)) continue;
        accumulate(parameters_[p], step, micro_batch, p);
      }
    }
    const std::optional<double> scale = decide();
    if (!scale) ++outcome_.skipped_steps;
    for (size_t p = 0; p < parameters_.size(); ++p) {
      if (parameters_[p].gradient == nullptr) continue;
      if (scale) update(parameters_[p], trial_.hyper(step, trial_.group_of(p)), *scale);
      parameters_[p].gradient = nullptr;
    }
  }

  /// What gradients are multiplied by; nothing if the step is skipped.
  std::optional<double> decide() {
    double total = 0;
    for (const Parameter& parameter : parameters_) {
      if (parameter.gradient == nullptr) continue;
      total += plain_sum_of_squares(parameter.gradient.get(), parameter.gradient_type,
                                    parameter.spec.elements);
    }
    const double max_norm = trial_.max_gradient_norm();
    const double loss_scale = static_cast<double>(trial_.loss_scale);
    const bool needs_norm = max_norm > 0 || trial_.skips_nonfinite || loss_scale != 1;
    const double norm = needs_norm ? std::sqrt(total) / loss_scale : 0;
    const double factor = max_norm > 0 ? std::min(max_norm / (norm + 1e-6), 1.0) : 1;
    outcome_.norms.push_back(norm);
    outcome_.clip_factors.push_back(factor);
    if (trial_.skips_nonfinite && !std::isfinite(total)) return std::nullopt;
    return factor / loss_scale;
  }

  void update(Parameter& parameter, const std::vector<double>& hyper, double scale) {
    make_states(parameter, hyper);
    ++parameter.step;
    cpu::ParameterUpdate update{
        .rule = trial_.rule,
        .scalars = rule_info(trial_.rule).scalars(hyper, parameter.step, scale),
        .elements = parameter.spec.elements,
        .rows = parameter.spec.rows,
        .gradient = parameter.gradient.get(),
        .gradient_type = parameter.gradient_type,
        .weight = parameter.weight.get(),
        .weight_type = parameter.spec.type,
        .master_format = parameter.spec.master_format,
        .master = parameter.master.get(),
        .states = {},
        .formats = parameter.spec.formats,
        .random_key = random_key(trial_.seed, static_cast<uint64_t>(&parameter - &parameters_[0])),
        .step = static_cast<uint32_t>(parameter.step)};
    for (size_t k = 0; k < kMaxStates; ++k) update.states[k] = array_of(parameter, k);
    update.scalars = reference_scalars(update);
    cpu::ResolvedUpdate(update).run(0, update.elements);
  }

  const Trial& trial_;
  std::vector<Parameter> parameters_;
  Outcome outcome_;
};

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_PLAIN_TRAINER_H_
