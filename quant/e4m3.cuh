// State format e4m3 on the device; the definition is in e4m3.h. Where the hardware has converters
// they give the same bits for what occurs: magnitudes of at most 448 (1 + 2^-22).
#ifndef OUTBOARD_QUANT_E4M3_CUH_
#define OUTBOARD_QUANT_E4M3_CUH_

#include "quant/block_codec.cuh"
#include "quant/companding.cuh"
#include "quant/e4m3.h"

namespace outboard::quant::device {

/// For factor_of and unit_of.
struct E4M3Levels {
  static constexpr float kLevels = kLargestE4M3;
};

/// The value of byte `i` of `words`; codes of NaN do not occur. As bits of a float, seven bits from
/// bit 20 on are 2^-120 times the value, be it normal or not.
__device__ __forceinline__ float e4m3_byte(const uint32_t* words, int i) {
  const uint32_t top = __byte_perm(words[i / 4], 0, 0x0444u | (i % 4) << 12);
  const uint32_t shifted = static_cast<uint32_t>(static_cast<int32_t>(top) >> 4);
  return exact::mul(exact::from_bits(shifted & 0x87F00000u), 0x1p120f);
}

template <>
struct RunDecoder<quant::E4M3> {
  float unit;
  __device__ __forceinline__ explicit RunDecoder(float scale) : unit(unit_of<E4M3Levels>(scale)) {}

  template <int kRun>
  __device__ __forceinline__ void operator()(const uint32_t* words, float* values) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) values[i] = exact::mul(e4m3_byte(words, i), unit);
  }
};

/// The codes of two values, `low` in the lower byte.
__device__ __forceinline__ uint32_t e4m3_pair_nearest(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return e4m3_nearest(low) | static_cast<uint32_t>(e4m3_nearest(high)) << 8;
#endif
}

template <>
struct RunEncoder<quant::E4M3> {
  static constexpr bool kTakesRoots = false;
  static constexpr bool kScalesAreRoots = false;
  float factor;
  bool is_live;
  __device__ __forceinline__ explicit RunEncoder(float scale)
      : factor(factor_of<E4M3Levels>(scale)), is_live(scale > 0.0f) {}

  static __device__ __forceinline__ float scale(float largest) { return plain_scale(largest); }

  template <int kRun>
  __device__ __forceinline__ void operator()(const float* values, const uint32_t*,
                                             uint32_t* words) const {
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) {
      uint32_t pairs[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float* two = values + 4 * i + 2 * k;
        pairs[k] = e4m3_pair_nearest(exact::mul(two[0], factor), exact::mul(two[1], factor));
      }
      words[i] = is_live ? __byte_perm(pairs[0], pairs[1], 0x5410u) : 0;
    }
  }
};

using E4M3 = BlockCodec<quant::E4M3>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_E4M3_CUH_
