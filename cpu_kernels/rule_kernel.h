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

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_RULE_KERNEL_H_
