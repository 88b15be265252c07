// The last levels of a sum of squares on the device: 64 lanes, two in each thread of a warp, become
// one value in the fixed order that the host uses too. Nothing is loaded here.
#ifndef OUTBOARD_GPU_KERNELS_SEGMENT_SUM_CUH_
#define OUTBOARD_GPU_KERNELS_SEGMENT_SUM_CUH_

#include "outboard/hd.h"

namespace outboard::gpu {

inline constexpr int kWarpLanes = 32;

/// The sum of the order's 64 lanes; thread t holds lanes 2t (`even`) and 2t + 1 (`odd`). Valid in
/// thread 0. Its halvings 32, 16, 8, 4, 2 are halvings of the warp, and its last is within thread
/// 0.
template <class T>
__device__ __forceinline__ T sum_lanes(T even, T odd) {
#pragma unroll
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    even = exact::add(even, __shfl_down_sync(0xFFFFFFFFu, even, distance));
    odd = exact::add(odd, __shfl_down_sync(0xFFFFFFFFu, odd, distance));
  }
  return exact::add(even, odd);
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_SEGMENT_SUM_CUH_
