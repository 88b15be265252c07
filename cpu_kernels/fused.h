// Kernels that do a whole update in one function, from stored codes to stored codes: for the few
// combinations of rule, formats and weights where the passes through a tile cost more than the
// arithmetic. Whatever they cannot do is left to the passes of step.cc.
#ifndef OUTBOARD_CPU_KERNELS_FUSED_H_
#define OUTBOARD_CPU_KERNELS_FUSED_H_

#include <cstddef>

namespace outboard::cpu {

struct ParameterUpdate;

/// Updates elements from `first` on, a multiple of kTileElements, tile by tile, and returns where
/// it stopped: at `last`, or at the beginning of a tile that needs the general passes, such as one
/// that holds a NaN. Bit by bit what those passes do.
using FusedKernel = size_t (*)(const ParameterUpdate& update, size_t first, size_t last);

/// The kernel for the best target that the CPU has (or the one forced by a test, see targets.h);
/// null if there is none for this combination. Resolve once per tensor.
[[nodiscard]] FusedKernel fused_kernel(const ParameterUpdate& update);

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_FUSED_H_
