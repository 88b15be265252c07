// The device codec of formats with blocks: the lanes that share a block agree on its scale, then
// each element is coded by the format's scalar definition.
#ifndef OUTBOARD_QUANT_BLOCK_CODEC_CUH_
#define OUTBOARD_QUANT_BLOCK_CODEC_CUH_

#include <cstdint>

#include "quant/block_format.h"
#include "quant/device_words.cuh"

namespace outboard::quant::device {

/// The largest of `magnitude` over the lanes that share a block: `lanes` neighbouring ones, a power
/// of two. More than 32 are the whole thread block, all of whose threads must call this together.
__device__ __forceinline__ uint32_t block_maximum(uint32_t magnitude, uint32_t lanes) {
  constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
  const uint32_t in_warp = lanes < 32 ? lanes : 32;
#pragma unroll 1
  for (uint32_t distance = 1; distance < in_warp; distance *= 2) {
    magnitude = larger_magnitude(magnitude, __shfl_xor_sync(kAllLanes, magnitude, distance));
  }
  if (lanes <= 32) return magnitude;
  __shared__ uint32_t warps[32];
  __syncthreads();  // the last call's readers are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = magnitude;
  __syncthreads();
  for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) {
    magnitude = larger_magnitude(magnitude, warps[warp]);
  }
  return magnitude;
}

/// What the fused step asks of a format; see ElementwiseCodec. Runs are 8 elements long.
template <class Definition>
struct BlockCodec {
  static constexpr bool kHasBlocks = true;
  static constexpr int kCodeBits = static_cast<int>(Definition::kCodeBits);
  static constexpr int kCodesPerWord = 32 / kCodeBits;

  /// Words of the codes of one run.
  template <int kRun>
  static constexpr int kWords = kRun / kCodesPerWord;

  /// Fetches codes and the scale of the run's block, which becomes word kWords.
  template <int kRun>
  static __device__ __forceinline__ void load(const DeviceStateArray& array, uint64_t first,
                                              uint32_t* words) {
    static_assert(kRun == 8, "a block is shared by whole runs of 8");
    const auto* codes = static_cast<const uint8_t*>(array.codes);
    load_words<kWords<kRun>>(codes + first * kCodeBits / 8, words);
    words[kWords<kRun>] = exact::bits(__ldg(array.scales + first / array.block_elements));
  }

  template <int kRun>
  static __device__ __forceinline__ void decode(const DeviceStateArray&, uint64_t,
                                                const uint32_t* words, float* values) {
    const typename Definition::Decoder decoder(exact::from_bits(words[kWords<kRun>]));
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      values[i] = decoder(static_cast<typename Definition::Code>(
          (words[i / kCodesPerWord] >> shift(i)) & ((1u << kCodeBits) - 1)));
    }
  }

  template <int kRun>
  static __device__ __forceinline__ void store(const DeviceStateArray& array, uint64_t first,
                                               const float* values, const RandomRun& random) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      largest = larger_magnitude(largest, exact::bits(values[i]) & kMagnitudeMask);
    }
    largest = block_maximum(largest, static_cast<uint32_t>(array.block_elements) / kRun);
    const float scale = Definition::scale(exact::from_bits(largest));
    uint32_t draws[kRun / 2] = {};
    if constexpr (Definition::kIsStochastic) random_words<kRun>(random, draws);
    const BlockEncoder<Definition> encoder(scale);
    uint32_t words[kWords<kRun>] = {};
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const uint32_t draw = (draws[i / 2] >> (16 * (i % 2))) & 0xFFFFu;
      words[i / kCodesPerWord] |= static_cast<uint32_t>(encoder(values[i], draw)) << shift(i);
    }
    store_words<kWords<kRun>>(static_cast<uint8_t*>(array.codes) + first * kCodeBits / 8, words);
    if (first % array.block_elements == 0) array.scales[first / array.block_elements] = scale;
  }

 private:
  static __device__ __forceinline__ constexpr int shift(int i) {
    if constexpr (kCodeBits == 4) {
      const bool even_high = Definition::kNibbleOrder == NibbleOrder::kEvenHigh;
      return 4 * ((even_high ? i ^ 1 : i) % kCodesPerWord);
    } else {
      return kCodeBits * (i % kCodesPerWord);
    }
  }
};

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_BLOCK_CODEC_CUH_
