// State format root4 on the device; the definition is in root4.h. A rule that has formed the root
// hands it over, which saves the dearest instruction of the encoder; the scale is that of the
// values.
#ifndef OUTBOARD_QUANT_ROOT4_CUH_
#define OUTBOARD_QUANT_ROOT4_CUH_

#include "quant/block_codec.cuh"
#include "quant/companding.cuh"
#include "quant/nibbles.cuh"
#include "quant/root4.h"

namespace outboard::quant::device {

template <>
struct RunDecoder<quant::Root4> {
  float unit;
  __device__ __forceinline__ explicit RunDecoder(float scale)
      : unit(quant::Root4::Decoder(scale).unit) {}

  template <int kRun>
  __device__ __forceinline__ void operator()(const uint32_t* words, float* values) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const uint32_t code = (words[i / 8] >> (4 * (i % 8))) & 15u;
      const float level =
          exact::sub(exact::from_bits(code | exact::bits(kUnsignedBias)), kUnsignedBias - 1.0f);
      values[i] = exact::mul(exact::mul(level, level), unit);
    }
  }
};

template <>
struct RunEncoder<quant::Root4> {
  static constexpr bool kTakesRoots = true;
  static constexpr bool kScalesAreRoots = false;
  struct Levels {
    static constexpr float kLevels = 16.0f;
  };
  float factor;
  bool is_live;
  __device__ __forceinline__ explicit RunEncoder(float scale)
      : factor(factor_of<Levels>(exact::sqrt(scale))), is_live(scale > 0.0f) {}

  static __device__ __forceinline__ float scale(float largest) { return plain_scale(largest); }

  /// 2^23 + code as bits. The scalar definition in other words: both sides of its comparison are
  /// 2^16 times as large; y - 3/2 is rounded to floor(y) - 1, or to one less for whole numbers,
  /// where either choice gives the same code; y is at most 16 without a minimum, because
  /// fl(r fl(16 / r)) is at most 16 (1 + 2^-24), which rounds to 16.
  __device__ __forceinline__ uint32_t biased_code(float root, uint32_t draw) const {
    const float y = exact::mul(root, factor);
    const float code = fmaxf(exact::add(y, kUnsignedBias - 1.5f), kUnsignedBias);
    const float next = exact::fma(code, 0x1p16f, 0x1p17f - 0x1p39f);
    const float past = exact::sub(y, exact::sub(code, kUnsignedBias - 1.0f));
    const float random = exact::sub(exact::from_bits(draw), kUnsignedBias);
    const bool is_up = exact::mul(random, y) < exact::mul(next, past);
    return exact::bits(code) + (is_up ? 1u : 0u);
  }

  template <int kRun>
  __device__ __forceinline__ void operator()(const float* roots, const uint32_t* draws,
                                             uint32_t* words) const {
    static_assert(kRun == 8);
    uint32_t codes[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {  // a draw becomes the low bits of 2^23 + draw
      const uint32_t draw = __byte_perm(draws[i / 2], 0x4B000000u, i % 2 == 0 ? 0x7410u : 0x7432u);
      codes[i] = biased_code(roots[i], draw);
    }
    words[0] = is_live ? pack_nibbles<0x4B000000u>(codes) : 0;
  }
};

using Root4 = BlockCodec<quant::Root4>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_ROOT4_CUH_
