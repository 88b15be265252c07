// State format sym8 on the device; the definition is in sym8.h.
#ifndef OUTBOARD_QUANT_SYM8_CUH_
#define OUTBOARD_QUANT_SYM8_CUH_

#include "quant/block_codec.cuh"
#include "quant/companding.cuh"
#include "quant/sym8.h"

namespace outboard::quant::device {

template <>
struct RunDecoder<quant::Sym8> {
  float unit;
  __device__ __forceinline__ explicit RunDecoder(float scale) : unit(unit_of<quant::Sym8>(scale)) {}

  template <int kRun>
  __device__ __forceinline__ void operator()(const uint32_t* words, float* values) const {
    uint32_t shifted[kRun / 4];
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) shifted[i] = words[i] ^ 0x80808080u;  // c + 128
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const float code = exact::sub(biased_byte(shifted, i), kUnsignedBias + 128.0f);
      values[i] = exact::mul(exact::mul(code, fabsf(code)), unit);
    }
  }
};

template <>
struct RunEncoder<quant::Sym8> {
  static constexpr bool kTakesRoots = false;
  static constexpr bool kScalesAreRoots = false;
  float factor;
  bool is_live;
  __device__ __forceinline__ explicit RunEncoder(float scale)
      : factor(factor_of<quant::Sym8>(scale)), is_live(scale > 0.0f) {}

  static __device__ __forceinline__ float scale(float largest) { return plain_scale(largest); }

  template <int kRun>
  __device__ __forceinline__ void operator()(const float* values, const uint32_t*,
                                             uint32_t* words) const {
    uint32_t indexes[kRun];
    uint32_t bits[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      indexes[i] = exact::bits(biased_nearest_square(exact::mul(fabsf(values[i]), factor)));
      bits[i] = exact::bits(values[i]);
    }
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) {
      const uint32_t magnitudes = pack_bytes(indexes + 4 * i);
      const uint32_t codes = negate_bytes(magnitudes, pack_signs(bits + 4 * i));
      words[i] = is_live ? codes : 0;
    }
  }
};

using Sym8 = BlockCodec<quant::Sym8>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_SYM8_CUH_
