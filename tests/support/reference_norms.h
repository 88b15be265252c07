// The first pass of rules that look at whole parameters once more, element by element from the
// scalar definitions: the scalars that ParameterNorms, ParameterFactors and the device must arrive
// at, and the row and column means.
#ifndef OUTBOARD_TESTS_SUPPORT_REFERENCE_NORMS_H_
#define OUTBOARD_TESTS_SUPPORT_REFERENCE_NORMS_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/reference_step.h"

namespace outboard::testing {

/// Segments of 64 lanes by fma and a halving tree, added in fp64.
inline double reference_sum_of_squares(const std::vector<float>& values) {
  double total = 0;
  for (size_t first = 0; first < values.size(); first += kNormSegmentElements) {
    float lanes[64] = {};
    const size_t last = std::min(first + kNormSegmentElements, values.size());
    for (size_t i = first; i < last; ++i) {
      float& lane = lanes[(i - first) % 64];
      lane = std::fma(values[i], values[i], lane);
    }
    for (size_t k = 32; k > 0; k /= 2) {
      for (size_t i = 0; i < k; ++i) lanes[i] = lanes[i] + lanes[i + k];
    }
    total += static_cast<double>(lanes[0]);
  }
  return total;
}

/// Moves one row or column, whose gradients are `first`, `first + stride`, ...
inline void reference_move(const cpu::ParameterUpdate& u, const FactorScalars& s, size_t first,
                           size_t stride, size_t count, float& average) {
  std::vector<float> gradients(count);
  for (size_t i = 0; i < count; ++i) {
    gradients[i] =
        reference_load(u.gradient_type, u.gradient, first + i * stride) * s.gradient_scale;
  }
  average = rules::moved_factor(average, reference_sum_of_squares(gradients),
                                static_cast<double>(count), s.one_minus_beta);
}

/// Moves the means of `u` where they lie.
template <NeedsFactors Rule>
RuleScalars reference_factored(const cpu::ParameterUpdate& u) {
  const auto scalars = u.scalars.as<typename Rule::template Scalars<float>>();
  const FactorScalars s = Rule::factor_scalars(scalars);
  size_t k = 0;
  while (Rule::kStates[k].shape != StateShape::kRows) ++k;
  auto* rows = static_cast<float*>(u.states[k].codes);
  auto* columns = static_cast<float*>(u.states[k + 1].codes);
  const size_t width = u.elements / u.rows;
  double lanes[64] = {};
  for (size_t i = 0; i < u.rows; ++i) {
    reference_move(u, s, i * width, 1, width, rows[i]);
    lanes[i % 64] += static_cast<double>(rows[i]);
  }
  for (size_t j = 0; j < width; ++j) reference_move(u, s, j, width, u.rows, columns[j]);
  for (size_t n = 32; n > 0; n /= 2) {
    for (size_t i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return RuleScalars::of(Rule::with_row_mean(scalars, lanes[0] / static_cast<double>(u.rows)));
}

template <class Rule>
RuleScalars reference_scalars_of(const cpu::ParameterUpdate& u) {
  if constexpr (NeedsFactors<Rule>) return reference_factored<Rule>(u);
  if constexpr (NeedsNorms<Rule>) {
    std::vector<float> states[kMaxStates];
    for (size_t k = 0; k < kMaxStates; ++k) {
      if (u.states[k].codes == nullptr) continue;
      const size_t padded = round_up(u.elements, u.formats[k].unit_elements());
      states[k] = reference_decode(u.formats[k].format, u.states[k], padded);
    }
    const auto scalars = u.scalars.as<typename Rule::template Scalars<float>>();
    std::vector<float> weight(u.elements);
    std::vector<float> measured(u.elements);
    for (size_t i = 0; i < u.elements; ++i) {
      float state[kMaxStates] = {};
      for (size_t k = 0; k < kMaxStates; ++k) state[k] = states[k].empty() ? 0 : states[k][i];
      weight[i] = reference_master(u, i);
      const float gradient = reference_load(u.gradient_type, u.gradient, i);
      measured[i] = Rule::measured(scalars, gradient, weight[i], state);
    }
    return RuleScalars::of(Rule::with_norms(scalars, reference_sum_of_squares(weight),
                                            reference_sum_of_squares(measured)));
  } else {
    return u.scalars;
  }
}

/// The scalars with which `u` is to be updated: its own, unless the rule has a first pass.
inline RuleScalars reference_scalars(const cpu::ParameterUpdate& u) {
  switch (u.rule) {
#define OUTBOARD_RULE(type, stem) \
  case RuleId::k##type:           \
    return reference_scalars_of<rules::type>(u);
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  }
  return u.scalars;
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_REFERENCE_NORMS_H_
