// How gradients and weights get into and out of a tile of fp32 values: widening, joining with
// what a split master adds, and rounding to the weight's type. No rule and no state format is known
// here.
#ifndef OUTBOARD_CPU_KERNELS_TRANSFER_H_
#define OUTBOARD_CPU_KERNELS_TRANSFER_H_

#include <cstddef>
#include <cstdint>

#include "outboard/types.h"
#include "quant/codec.h"

namespace outboard::cpu {

/// The three conversions of one parameter. `count` is a multiple of kTileElements; pointers are to
/// the run's first element and need the alignment of their element type only. `first_element` is
/// its index in the parameter.
struct Transfer {
  /// Widens gradients; null: they are fp32 and are used where they lie.
  void (*load_gradient)(const void* gradient, size_t count, float* out);
  /// Decodes the full-precision weight; null: it is fp32 and is updated where it lies, in `master`
  /// if there is one.
  void (*load_weight)(const void* weight, const void* master, size_t count, float* out);
  /// Rounds updated values to `weight` and, where it is split, `master`; null: nothing is left to
  /// store.
  void (*store_weight)(const float* in, size_t count, const RandomContext& random,
                       uint64_t first_element, void* weight, void* master);
};

/// The conversions for the best target that the CPU has (or the one forced by a test, see
/// targets.h). Throws Error(kType) unless the master format can hold the weight: kWeight fp32,
/// kSplit, kSplit8 and kStochastic bf16, kF32 any.
[[nodiscard]] Transfer resolve_transfer(DType gradient, DType weight, MasterFormat master);

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_TRANSFER_H_
