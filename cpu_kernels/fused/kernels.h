// The fused kernels by name, each for the target that choose_target() has fixed. What each is made
// for is in fused.cc, which alone calls them.
#ifndef OUTBOARD_CPU_KERNELS_FUSED_KERNELS_H_
#define OUTBOARD_CPU_KERNELS_FUSED_KERNELS_H_

#include "cpu_kernels/fused.h"

namespace outboard::cpu {

/// Adam and AdamW with state in sym8 and root8, gradient and weight both fp32 or both bf16 without
/// an fp32 master beside it.
[[nodiscard]] FusedKernel fused_adam_8bit();

/// The same with state in nf4 and root4.
[[nodiscard]] FusedKernel fused_adam_4bit();

/// The same with state in sym8 and root4.
[[nodiscard]] FusedKernel fused_adam_8bit_4bit();

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_FUSED_KERNELS_H_
