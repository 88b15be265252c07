// Sums of squares of gradients on the device, in the fixed order that the host uses too, so that
// both give the same bits. Nothing of the optimizer's step lives here.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "gpu_kernels/cuda_check.h"
#include "gpu_kernels/gradient_math.h"
#include "gpu_kernels/segment_sum.cuh"
#include "quant/device_rounding.cuh"
#include "quant/device_words.cuh"
#include "quant/rounding.h"

namespace outboard::gpu {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kRowElements = 64;  ///< one element for each of the order's 64 lanes, two a thread
constexpr int kSegmentRows = static_cast<int>(kNormSegmentElements) / kRowElements;
constexpr int kRowsInFlight = 16;  ///< independent loads of one thread before the first use

static_assert(kSegmentRows * kRowElements == static_cast<int>(kNormSegmentElements));
static_assert(kSegmentRows % kRowsInFlight == 0);

/// Two neighbouring elements of `kType` as they lie in memory: one word, or two for fp32.
template <DType kType>
struct Pair {
  static constexpr int kWords = kType == DType::kF32 ? 2 : 1;
  uint32_t word[kWords];

  [[nodiscard]] __device__ __forceinline__ float value(int i) const {
    if constexpr (kType == DType::kF32) {
      return exact::from_bits(word[i]);
    } else if constexpr (kType == DType::kBF16) {
      return quant::f32_from_bf16(quant::device::halfword(word, i));
    } else {
      return quant::device::f32_from_f16(quant::device::halfword(word, i));
    }
  }
};

/// Elements `first` and `first + 1`; zero beyond the end, which leaves an fma chain as it is.
template <DType kType, bool kWhole>
__device__ __forceinline__ Pair<kType> load_pair(const void* gradient, uint64_t first,
                                                 uint64_t elements) {
  using Element = std::conditional_t<kType == DType::kF32, uint32_t, uint16_t>;
  const Element* source = static_cast<const Element*>(gradient) + first;
  Pair<kType> pair = {};
  if constexpr (kWhole) {
    quant::device::load_words<Pair<kType>::kWords>(source, pair.word);
  } else {
    const uint32_t low = first < elements ? source[0] : 0;
    const uint32_t high = first + 1 < elements ? source[1] : 0;
    if constexpr (kType == DType::kF32) {
      pair.word[0] = low;
      pair.word[1] = high;
    } else {
      pair.word[0] = low | (high << 16);
    }
  }
  return pair;
}

/// One warp's segment: the result is valid in lane 0.
template <DType kType, bool kWhole>
__device__ __forceinline__ float segment_sum(const void* gradient, uint64_t first,
                                             uint64_t elements) {
  float even = 0;
  float odd = 0;
#pragma unroll 1
  for (int row = 0; row < kSegmentRows; row += kRowsInFlight) {
    Pair<kType> pairs[kRowsInFlight];
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      pairs[i] = load_pair<kType, kWhole>(gradient, first + (row + i) * kRowElements, elements);
    }
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      even = exact::fma(pairs[i].value(0), pairs[i].value(0), even);
      odd = exact::fma(pairs[i].value(1), pairs[i].value(1), odd);
    }
  }
  return sum_lanes(even, odd);
}

template <DType kType>
__global__ void __launch_bounds__(kWarpLanes* kWarpsPerBlock)
    sum_segments(const void* gradient, uint64_t elements, bool is_aligned, float* sums) {
  const uint64_t segment =
      static_cast<uint64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpLanes;
  const uint64_t begin = segment * kNormSegmentElements;
  if (begin >= elements) return;
  const int lane = threadIdx.x % kWarpLanes;
  const bool is_whole = is_aligned && begin + kNormSegmentElements <= elements;
  const uint64_t first = begin + 2 * lane;
  const float sum = is_whole ? segment_sum<kType, true>(gradient, first, elements)
                             : segment_sum<kType, false>(gradient, first, elements);
  if (lane == 0) sums[segment] = sum;
}

// Few blocks: the link is the bound, and forward or backward may want the rest of the device.
constexpr unsigned kWriteBlocks = 16;
constexpr unsigned kWriteThreads = 256;

__global__ void __launch_bounds__(kWriteThreads)
    copy_floats(float* target, const float* source, uint64_t count) {
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kWriteThreads;
  for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * kWriteThreads + threadIdx.x; i < count;
       i += stride) {
    target[i] = source[i];
  }
}

}  // namespace

void write_floats(float* target, const float* source, size_t count, StreamHandle stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>(
      std::min<size_t>((count + kWriteThreads - 1) / kWriteThreads, kWriteBlocks));
  copy_floats<<<blocks, kWriteThreads, 0, static_cast<cudaStream_t>(stream)>>>(target, source,
                                                                               count);
  check_cuda(cudaGetLastError(), "write_floats", "the kernel launch");
}

void sum_of_squares(const void* gradient, DType type, size_t elements, float* sums,
                    StreamHandle stream_handle) {
  if (elements == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const auto blocks =
      static_cast<unsigned>((norm_segments(elements) + kWarpsPerBlock - 1) / kWarpsPerBlock);
  const bool is_aligned = reinterpret_cast<uintptr_t>(gradient) % (2 * bytes_of(type)) == 0;
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kWarpLanes * kWarpsPerBlock, 0, stream>>>(gradient, elements, is_aligned,
                                                               sums);
  };
  switch (type) {
    case DType::kF32:
      launch(&sum_segments<DType::kF32>);
      break;
    case DType::kBF16:
      launch(&sum_segments<DType::kBF16>);
      break;
    case DType::kF16:
      launch(&sum_segments<DType::kF16>);
      break;
  }
  check_cuda(cudaGetLastError(), "sum_of_squares", "the kernel launch");
}

}  // namespace outboard::gpu
