// The device codec of formats with blocks: the lanes that share a block agree on its scale, then
// each element is coded by the format's scalar definition.
#ifndef OUTBOARD_QUANT_BLOCK_CODEC_CUH_
#define OUTBOARD_QUANT_BLOCK_CODEC_CUH_

#include <cstdint>

#include "quant/block_format.h"
#include "quant/device_words.cuh"

namespace outboard::quant::device {

/// The largest of `magnitude` over the lanes that share a block: 8, 16 or 32 neighbouring ones.
__device__ __forceinline__ uint32_t lanes_maximum(uint32_t magnitude, uint32_t lanes) {
  constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    if (distance >= 8 && distance >= lanes) break;
    magnitude = larger_magnitude(magnitude, __shfl_xor_sync(kAllLanes, magnitude, distance));
  }
  return magnitude;
}

/// The same over a whole thread block, all of whose threads must call this together.
__device__ __forceinline__ uint32_t threads_maximum(uint32_t magnitude) {
  __shared__ uint32_t warps[32];
  magnitude = lanes_maximum(magnitude, 32);
  __syncthreads();  // the last call's readers are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = magnitude;
  __syncthreads();
  for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) {
    magnitude = larger_magnitude(magnitude, warps[warp]);
  }
  return magnitude;
}

/// Over the lanes that share a block of `Definition`, each with a run of kRun elements.
template <class Definition, int kRun>
__device__ __forceinline__ uint32_t block_maximum(uint32_t magnitude, uint32_t block_elements) {
  if constexpr (Definition::kBlockSizes.back() > 32 * kRun) {
    if (block_elements > 32 * kRun) return threads_maximum(magnitude);
  }
  return lanes_maximum(magnitude, block_elements / kRun);
}

/// Where the code of element `i` of a run lies in its word.
template <class Definition>
__device__ __forceinline__ constexpr int code_shift(int i) {
  constexpr int kCodeBits = static_cast<int>(Definition::kCodeBits);
  constexpr int kCodesPerWord = 32 / kCodeBits;
  if constexpr (kCodeBits == 4) {
    const bool even_high = Definition::kNibbleOrder == NibbleOrder::kEvenHigh;
    return 4 * ((even_high ? i ^ 1 : i) % kCodesPerWord);
  } else {
    return kCodeBits * (i % kCodesPerWord);
  }
}

/// Decodes the run of one lane, element by element. Formats for which the hardware has something
/// shorter specialise it.
template <class Definition>
struct RunDecoder {
  typename Definition::Decoder decoder;
  __device__ __forceinline__ explicit RunDecoder(float scale) : decoder(scale) {}

  template <int kRun>
  __device__ __forceinline__ void operator()(const uint32_t* words, float* values) const {
    constexpr int kCodeBits = static_cast<int>(Definition::kCodeBits);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const uint32_t word = words[i * kCodeBits / 32] >> code_shift<Definition>(i);
      values[i] = decoder(static_cast<typename Definition::Code>(word & ((1u << kCodeBits) - 1)));
    }
  }
};

/// Encodes the run of one lane with its block's scale. `draws` holds 16 random bits per element.
/// kTakesRoots: what it is given are the values' roots. kScalesAreRoots: scales are formed from the
/// largest of the roots instead of the largest of the values.
template <class Definition>
struct RunEncoder {
  static constexpr bool kTakesRoots = false;
  static constexpr bool kScalesAreRoots = false;
  BlockEncoder<Definition> encoder;
  __device__ __forceinline__ explicit RunEncoder(float scale) : encoder(scale) {}

  static __device__ __forceinline__ float scale(float largest) {
    return Definition::scale(largest);
  }

  template <int kRun>
  __device__ __forceinline__ void operator()(const float* values, const uint32_t* draws,
                                             uint32_t* words) const {
    constexpr int kCodeBits = static_cast<int>(Definition::kCodeBits);
#pragma unroll
    for (int i = 0; i < kRun * kCodeBits / 32; ++i) words[i] = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const uint32_t draw = (draws[i / 2] >> (16 * (i % 2))) & 0xFFFFu;
      words[i * kCodeBits / 32] |= static_cast<uint32_t>(encoder(values[i], draw))
                                   << code_shift<Definition>(i);
    }
  }
};

/// What the fused step asks of a format; see ElementwiseCodec. Runs are 8 elements long.
template <class Definition>
struct BlockCodec {
  static constexpr bool kHasBlocks = true;
  static constexpr bool kTakesRoots = RunEncoder<Definition>::kTakesRoots;
  static constexpr bool kScalesAreRoots = RunEncoder<Definition>::kScalesAreRoots;
  /// Whether a block can be longer than a warp's elements.
  static constexpr bool kHasLongBlocks = Definition::kBlockSizes.back() > 32 * 8;
  static constexpr int kCodeBits = static_cast<int>(Definition::kCodeBits);

  /// Words of the codes of one run.
  template <int kRun>
  static constexpr int kWords = kRun* kCodeBits / 32;

  /// Which block holds an element. Lengths are powers of two; a division of 64 bits would cost as
  /// much as all the rest.
  static __device__ __forceinline__ uint64_t block_of(uint32_t block_elements, uint64_t element) {
    return element >> (31 - __clz(static_cast<int>(block_elements)));
  }

  /// Fetches codes and the scale of the run's block, which becomes word kWords.
  template <int kRun>
  static __device__ __forceinline__ void load(const DeviceStateArray& array, uint64_t first,
                                              uint32_t* words) {
    static_assert(kRun == 8, "a block is shared by whole runs of 8");
    const auto* codes = static_cast<const uint8_t*>(array.codes);
    load_words<kWords<kRun>>(codes + first * kCodeBits / 8, words);
    words[kWords<kRun>] = exact::bits(__ldcg(array.scales + block_of(array.block_elements, first)));
  }

  template <int kRun>
  static __device__ __forceinline__ void decode(const DeviceStateArray&, uint64_t,
                                                const uint32_t* words, float* values) {
    const RunDecoder<Definition> decoder(exact::from_bits(words[kWords<kRun>]));
    decoder.template operator()<kRun>(words, values);
  }

  /// Encodes and stores a run of values.
  template <int kRun>
  static __device__ __forceinline__ void store(const DeviceStateArray& array, uint64_t first,
                                               const float* values, const RandomRun& random) {
    const uint32_t largest = run_maximum<kRun>(values);
    if constexpr (kTakesRoots) {
      float roots[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) roots[i] = exact::sqrt(values[i]);
      store_roots<kRun>(array, first, roots, largest, random);
    } else {
      store_content<kRun>(array, first, values, largest, random);
    }
  }

  /// The same for the roots of the values, the largest of which has the bits `largest_value`; only
  /// where kTakesRoots. kArePositive: no root is 0.
  template <int kRun, bool kArePositive = false>
  static __device__ __forceinline__ void store_roots(const DeviceStateArray& array, uint64_t first,
                                                     const float* roots, uint32_t largest_value,
                                                     const RandomRun& random) {
    static_assert(kTakesRoots);
    const uint32_t largest =
        kScalesAreRoots ? run_maximum<kRun, kArePositive>(roots) : largest_value;
    store_content<kRun, kArePositive>(array, first, roots, largest, random);
  }

 private:
  /// The largest magnitude of a run, as bits.
  template <int kRun, bool kArePositive = false>
  static __device__ __forceinline__ uint32_t run_maximum(const float* content) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const uint32_t bits = exact::bits(content[i]);
      largest = larger_magnitude(largest, kArePositive ? bits : bits & kMagnitudeMask);
    }
    return largest;
  }

  template <int kRun, bool kArePositive = false>
  static __device__ __forceinline__ void store_content(const DeviceStateArray& array,
                                                       uint64_t first, const float* content,
                                                       uint32_t largest, const RandomRun& random) {
    largest = block_maximum<Definition, kRun>(largest, array.block_elements);
    const float scale = RunEncoder<Definition>::scale(exact::from_bits(largest));
    uint32_t draws[kRun / 2] = {};
    if constexpr (Definition::kIsStochastic) random_words<kRun>(random, draws);
    const RunEncoder<Definition> encoder(scale);
    uint32_t words[kWords<kRun>];
    if constexpr (kArePositive &&
                  requires { encoder.template operator()<kRun, true>(content, draws, words); }) {
      encoder.template operator()<kRun, true>(content, draws, words);
    } else {
      encoder.template operator()<kRun>(content, draws, words);
    }
    store_words<kWords<kRun>>(static_cast<uint8_t*>(array.codes) + first * kCodeBits / 8, words);
    const bool is_first = (first & (array.block_elements - 1)) == 0;
    if (is_first) array.scales[block_of(array.block_elements, first)] = scale;
  }
};

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_BLOCK_CODEC_CUH_
