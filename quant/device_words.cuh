// Vector access to device memory and random numbers for a run of elements: what every device codec
// and the fused step build on. No format and no rule lives here.
#ifndef OUTBOARD_QUANT_DEVICE_WORDS_CUH_
#define OUTBOARD_QUANT_DEVICE_WORDS_CUH_

#include <cstdint>

#include "quant/random.h"

namespace outboard::quant::device {

/// One state array of one parameter on the device. `scales` is null for formats without scales.
struct DeviceStateArray {
  void* codes;
  float* scales;
  uint32_t block_elements;
};

// Every array passes once through a step and is then of no use to L1, so accesses go around it. On
// an H200 that is 2 to 4 % faster than evict-first hints. The intrinsics also state what the
// compiler cannot derive from pointers that it finds in a table: that memory is global and accesses
// may be 16 bytes wide.

/// Reads kWords 32-bit words with the widest accesses, at most 16 bytes each. `source` is global
/// memory aligned to the smaller of 16 bytes and the whole run.
template <int kWords>
__device__ __forceinline__ void load_words(const void* source, uint32_t* words) {
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 quad = __ldcg(static_cast<const uint4*>(source) + i);
      words[4 * i] = quad.x;
      words[4 * i + 1] = quad.y;
      words[4 * i + 2] = quad.z;
      words[4 * i + 3] = quad.w;
    }
  } else if constexpr (kWords == 2) {
    const uint2 pair = __ldcg(static_cast<const uint2*>(source));
    words[0] = pair.x;
    words[1] = pair.y;
  } else {
    static_assert(kWords == 1, "a run is 1, 2 or a multiple of 4 words");
    words[0] = __ldcg(static_cast<const uint32_t*>(source));
  }
}

/// The inverse of load_words.
template <int kWords>
__device__ __forceinline__ void store_words(void* target, const uint32_t* words) {
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      __stcg(static_cast<uint4*>(target) + i,
             make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]));
    }
  } else if constexpr (kWords == 2) {
    __stcg(static_cast<uint2*>(target), make_uint2(words[0], words[1]));
  } else {
    static_assert(kWords == 1, "a run is 1, 2 or a multiple of 4 words");
    __stcg(static_cast<uint32_t*>(target), words[0]);
  }
}

/// Halfword `i` of a run of packed 16-bit elements.
__device__ __forceinline__ uint16_t halfword(const uint32_t* words, int i) {
  return static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
}

/// Writes halfword `i`; even halfwords first, since they clear their odd neighbour.
__device__ __forceinline__ void set_halfword(uint32_t* words, int i, uint16_t value) {
  if (i % 2 == 0) {
    words[i / 2] = value;
  } else {
    words[i / 2] |= static_cast<uint32_t>(value) << 16;
  }
}

/// Where a run of elements draws its random numbers from.
struct RandomRun {
  RandomKey key;
  uint32_t step;
  uint32_t stream;
  uint64_t element;  ///< index of the run's first element in the whole parameter; a multiple of its
                     ///< length
};

/// 16 random bits for each of kRun elements, as outboard::random16 gives them: element i has
/// halfword i. One generator call serves 8 elements; a run of 4 uses half of it.
template <int kRun>
__device__ __forceinline__ void random_words(const RandomRun& run, uint32_t* words) {
  static_assert(kRun == 4 || kRun == 8);
  const PhiloxBlock block = random_block(run.key, run.step, run.stream, run.element);
  const bool is_upper = kRun == 4 && (run.element & 4) != 0;
#pragma unroll
  for (int i = 0; i < kRun / 2; ++i) {
    words[i] = is_upper ? block.word[(i + 2) % 4] : block.word[i];
  }
}

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_DEVICE_WORDS_CUH_
