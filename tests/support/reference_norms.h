// The first pass of rules that need norms once more, element by element from the scalar
// definitions: the scalars that ParameterNorms and the device must arrive at.
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

template <class Rule>
RuleScalars reference_scalars_of(const cpu::ParameterUpdate& u) {
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

/// The scalars with which `u` is to be updated: its own, unless the rule needs norms.
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
