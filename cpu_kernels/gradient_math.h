// Arithmetic on gradients that are already on the host: fp32 accumulation over micro-batches, and
// sums of squares in the fixed order that the device uses too. Written with xsimd; nothing of
// Highway here.
#ifndef OUTBOARD_CPU_KERNELS_GRADIENT_MATH_H_
#define OUTBOARD_CPU_KERNELS_GRADIENT_MATH_H_

#include <cstddef>

#include "outboard/types.h"

namespace outboard::cpu {

/// Which of the two compiled forms runs; both give the same bits. kPortable is also what kBest
/// means on a CPU without fused multiply-add vectors; tests ask for it by name.
enum class GradientLoops { kBest, kPortable };

/// Sum of squares of each segment of kNormSegmentElements elements: 64 lanes, lane l adds elements
/// l, l + 64, ... by fma from 0, then a halving tree. `sums` gets norm_segments(elements) values. A
/// segment with an Inf or NaN gives Inf or NaN, and so does one whose squares overflow.
void sum_of_squares(const void* gradient, DType type, size_t elements, float* sums,
                    GradientLoops loops = GradientLoops::kBest);

/// sums[i] = fma(values[i], values[i], sums[i]).
void add_squares(const float* values, size_t elements, float* sums,
                 GradientLoops loops = GradientLoops::kBest);

/// accumulated = fl(first) for the first micro-batch's own type: widens `elements` values to fp32.
void widen(const void* gradient, DType type, size_t elements, float* widened);

/// accumulated += gradient in fp32, one addition per element.
void accumulate(const void* gradient, DType type, size_t elements, float* accumulated,
                GradientLoops loops = GradientLoops::kBest);

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_GRADIENT_MATH_H_
