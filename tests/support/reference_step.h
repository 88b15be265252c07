// The whole CPU step once more, element by element from the scalar definitions: what ResolvedUpdate
// must equal for every rule, gradient type, weight, master and state format.
#ifndef OUTBOARD_TESTS_SUPPORT_REFERENCE_STEP_H_
#define OUTBOARD_TESTS_SUPPORT_REFERENCE_STEP_H_

#include "cpu_kernels/step.h"
#include "outboard/rules/factors.h"
#include "outboard_rules.h"
#include "quant/random.h"
#include "quant/rounding.h"
#include "support/reference_codec.h"

namespace outboard::testing {

inline float reference_load(DType type, const void* from, size_t i) {
  if (type == DType::kF32) return static_cast<const float*>(from)[i];
  const uint16_t code = static_cast<const uint16_t*>(from)[i];
  return type == DType::kBF16 ? quant::f32_from_bf16(code) : quant::f32_from_f16(code);
}

inline void reference_rule(RuleId rule, const RuleScalars& scalars, float gradient, float& weight,
                           float* state) {
  switch (rule) {
#define OUTBOARD_RULE(type, stem) \
  case RuleId::k##type:           \
    return rules::type::update(scalars.as<rules::type::Scalars<float>>(), gradient, weight, state);
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  }
}

inline float reference_master(const cpu::ParameterUpdate& u, size_t i) {
  if (u.master_format == MasterFormat::kF32) return static_cast<const float*>(u.master)[i];
  if (!is_split(u.master_format)) return reference_load(u.weight_type, u.weight, i);
  const uint16_t high = static_cast<const uint16_t*>(u.weight)[i];
  return u.master_format == MasterFormat::kSplit
             ? quant::join_f32(high, static_cast<const int16_t*>(u.master)[i])
             : quant::join8_f32(high, static_cast<const int8_t*>(u.master)[i]);
}

inline void reference_store(const cpu::ParameterUpdate& u, size_t i, float value) {
  if (u.master_format == MasterFormat::kF32) static_cast<float*>(u.master)[i] = value;
  if (u.weight_type == DType::kF32) {
    static_cast<float*>(u.weight)[i] = value;
    return;
  }
  uint16_t& code = static_cast<uint16_t*>(u.weight)[i];
  if (u.master_format == MasterFormat::kStochastic) {
    code = quant::bf16_stochastic(value, random16(u.random_key, u.step, 0, i));
  } else if (u.master_format == MasterFormat::kSplit) {
    code = quant::split_f32(value).high;
    static_cast<int16_t*>(u.master)[i] = quant::split_f32(value).low;
  } else if (u.master_format == MasterFormat::kSplit8) {
    const auto split = quant::split8_f32(value, random16(u.random_key, u.step, 0, i));
    code = split.high;
    static_cast<int8_t*>(u.master)[i] = split.low;
  } else {
    code = u.weight_type == DType::kBF16 ? quant::bf16_nearest(value) : quant::f16_nearest(value);
  }
}

/// What state `k` is to element after element: its own values, or, in the place of rows, products
/// of rows and columns.
inline std::vector<float> reference_state(const cpu::ParameterUpdate& u, size_t k) {
  const RuleInfo& rule = rule_info(u.rule);
  if (u.states[k].codes == nullptr || rule.states[k].shape == StateShape::kColumns) return {};
  if (rule.states[k].shape == StateShape::kElements) {
    const size_t padded = round_up(u.elements, u.formats[k].unit_elements());
    return reference_decode(u.formats[k].format, u.states[k], padded);
  }
  const auto* rows = static_cast<const float*>(u.states[k].codes);
  const auto* columns = static_cast<const float*>(u.states[k + 1].codes);
  const double row_mean = rule.factor_scalars(u.scalars).row_mean;
  std::vector<float> moments(u.elements);
  for (size_t i = 0; i < u.elements; ++i) {
    const size_t width = u.elements / u.rows;
    const float share = rules::row_share(rows[i / width], row_mean);
    moments[i] = rules::factored_moment(share, columns[i % width]);
  }
  return moments;
}

/// Updates every element of `u`.
inline void reference_step(const cpu::ParameterUpdate& u) {
  std::vector<float> states[kMaxStates];
  for (size_t k = 0; k < kMaxStates; ++k) states[k] = reference_state(u, k);
  for (size_t i = 0; i < u.elements; ++i) {
    float weight = reference_master(u, i);
    float state[kMaxStates] = {};
    for (size_t k = 0; k < kMaxStates; ++k) state[k] = states[k].empty() ? 0 : states[k][i];
    reference_rule(u.rule, u.scalars, reference_load(u.gradient_type, u.gradient, i), weight,
                   state);
    for (size_t k = 0; k < kMaxStates; ++k) {
      if (!states[k].empty()) states[k][i] = state[k];
    }
    reference_store(u, i, weight);
  }
  for (size_t k = 0; k < kMaxStates; ++k) {
    if (states[k].empty() || rule_info(u.rule).states[k].shape != StateShape::kElements) continue;
    const RandomContext random{u.random_key, u.step, static_cast<uint32_t>(k + 1)};
    reference_encode(u.formats[k].format, states[k], u.elements, random, 0, u.states[k]);
  }
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_REFERENCE_STEP_H_
