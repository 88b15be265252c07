// The device codec of formats without scales: each element is coded by itself, by the format's
// scalar definition. A format with scales writes its own codec with the same members.
#ifndef OUTBOARD_QUANT_ELEMENTWISE_CODEC_CUH_
#define OUTBOARD_QUANT_ELEMENTWISE_CODEC_CUH_

#include <cstdint>

#include "quant/device_words.cuh"

namespace outboard::quant::device {

/// Codes of two neighbouring elements of a 16-bit format in one word; `draws` holds 16 random bits
/// for each. Formats for which the hardware has something shorter specialise it.
template <class Definition>
__device__ __forceinline__ uint32_t encode_pair(float low, float high, uint32_t draws) {
  return static_cast<uint32_t>(Definition::encode(low, draws & 0xFFFFu)) |
         static_cast<uint32_t>(Definition::encode(high, draws >> 16)) << 16;
}

/// What the fused step asks of a format. A warp works on 32 * kRun consecutive elements, kRun of
/// them in each lane, and all 32 lanes make every call together. Arrays are padded to whole tiles,
/// so runs are always whole; what lies beyond the parameter's end arrives as zero.
template <class Definition>
struct ElementwiseCodec {
  static constexpr bool kHasBlocks = false;
  static constexpr bool kTakesRoots = false;
  static constexpr int kCodeBits = static_cast<int>(Definition::kCodeBits);
  static_assert(kCodeBits == 16 || kCodeBits == 32, "other widths need a codec of their own");

  /// Words that the codes of one run fill.
  template <int kRun>
  static constexpr int kWords = kRun* kCodeBits / 32;

  /// Fetches the run that starts at element `first`; uses nothing of it, so that loads overlap.
  template <int kRun>
  static __device__ __forceinline__ void load(const DeviceStateArray& array, uint64_t first,
                                              uint32_t* words) {
    const auto* codes = static_cast<const typename Definition::Code*>(array.codes);
    load_words<kWords<kRun>>(codes + first, words);
  }

  /// The fp32 values of a run that load() fetched.
  template <int kRun>
  static __device__ __forceinline__ void decode(const DeviceStateArray&, uint64_t,
                                                const uint32_t* words, float* values) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if constexpr (kCodeBits == 32) {
        values[i] = Definition::decode(exact::from_bits(words[i]));
      } else {
        values[i] = Definition::decode(halfword(words, i));
      }
    }
  }

  /// Encodes and stores a run.
  template <int kRun>
  static __device__ __forceinline__ void store(const DeviceStateArray& array, uint64_t first,
                                               const float* values, const RandomRun& random) {
    uint32_t draws[kRun / 2] = {};
    if constexpr (Definition::kIsStochastic) random_words<kRun>(random, draws);
    uint32_t words[kWords<kRun>];
    if constexpr (kCodeBits == 32) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) words[i] = exact::bits(Definition::encode(values[i], 0));
    } else {
#pragma unroll
      for (int i = 0; i < kRun / 2; ++i) {
        words[i] = encode_pair<Definition>(values[2 * i], values[2 * i + 1], draws[i]);
      }
    }
    store_words<kWords<kRun>>(static_cast<typename Definition::Code*>(array.codes) + first, words);
  }
};

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_ELEMENTWISE_CODEC_CUH_
