// Host declarations of the gradient kernels: no CUDA header is needed to include this.
#ifndef OUTBOARD_GPU_KERNELS_GRADIENT_MATH_H_
#define OUTBOARD_GPU_KERNELS_GRADIENT_MATH_H_

#include <cstddef>

#include "gpu_kernels/step.h"

namespace outboard::gpu {

/// Enqueues, on `stream`, the sums of squares of segments of kNormSegmentElements elements of a
/// contiguous device gradient at any element alignment, in the same order and with the same bits as
/// cpu::sum_of_squares. `sums` is device memory for norm_segments(elements) values. A segment with
/// an Inf or NaN gives Inf or NaN. Does not synchronise; throws Error(kDevice) when the launch
/// fails.
void sum_of_squares(const void* gradient, DType type, size_t elements, float* sums,
                    StreamHandle stream);

/// Enqueues, on `stream`, a copy of `count` floats by a kernel, to any memory that the device can
/// write to: device memory, or pinned host memory by its device address. Does not synchronise;
/// throws Error(kDevice) when the launch fails.
void write_floats(float* target, const float* source, size_t count, StreamHandle stream);

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_GRADIENT_MATH_H_
