// The signature behind which every rule's SIMD kernel stands, and its lookup.
#ifndef OUTBOARD_CPU_KERNELS_RULE_KERNEL_H_
#define OUTBOARD_CPU_KERNELS_RULE_KERNEL_H_

#include <cstddef>

#include "outboard/rule.h"
#include "outboard/types.h"

namespace outboard::cpu {

/// fp32 values on which a rule kernel works in place: a tile in L1, or a longer run of fp32 arrays.
/// Any alignment.
struct RuleTile {
  const float* gradient;
  float* weight;
  float* state[kMaxStates];  ///< in the rule's state order; null for states that do not exist
  size_t elements;           ///< a multiple of kTileElements
};

using RuleKernel = void (*)(const RuleScalars& scalars, const RuleTile& tile);

/// The kernel of `rule` for the best target that the CPU has (or the one forced by a test, see
/// targets.h). Resolve once per tensor, not per tile.
[[nodiscard]] RuleKernel rule_kernel(RuleId rule);

/// The same for a rule's type; specialised in cpu_kernels/rules/<stem>.cc, called by rule_kernel()
/// only.
template <class Rule>
[[nodiscard]] RuleKernel resolve_kernel();

/// Writes measured() of every element of the tile to `values`; changes nothing else.
using MeasureKernel = void (*)(const RuleScalars& scalars, const RuleTile& tile, float* values);

/// As rule_kernel(), for the first pass of a rule that needs norms; null for every other rule.
[[nodiscard]] MeasureKernel measure_kernel(RuleId rule);

/// The same for such a rule's type, as resolve_kernel().
template <class Rule>
[[nodiscard]] MeasureKernel resolve_measure_kernel();

/// The rule's scalar formula, element by element: what every SIMD kernel must equal bit by bit, and
/// what targets without fused multiply-add run.
template <class Rule>
void run_scalar_rule(const RuleScalars& scalars, const RuleTile& tile) {
  const auto s = scalars.as<typename Rule::template Scalars<float>>();
  for (size_t i = 0; i < tile.elements; ++i) {
    float state[kMaxStates] = {};
    for (size_t k = 0; k < Rule::kStates.size(); ++k) {
      if (tile.state[k] != nullptr) state[k] = tile.state[k][i];
    }
    Rule::update(s, tile.gradient[i], tile.weight[i], state);
    for (size_t k = 0; k < Rule::kStates.size(); ++k) {
      if (tile.state[k] != nullptr) tile.state[k][i] = state[k];
    }
  }
}

/// The same for measured().
template <NeedsNorms Rule>
void run_scalar_measure(const RuleScalars& scalars, const RuleTile& tile, float* values) {
  const auto s = scalars.as<typename Rule::template Scalars<float>>();
  for (size_t i = 0; i < tile.elements; ++i) {
    float state[kMaxStates] = {};
    for (size_t k = 0; k < Rule::kStates.size(); ++k) {
      if (tile.state[k] != nullptr) state[k] = tile.state[k][i];
    }
    values[i] = Rule::measured(s, tile.gradient[i], tile.weight[i], state);
  }
}

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_RULE_KERNEL_H_
