// State format nf4 on the device; the definition is in nf4.h. All lanes of a warp code together: a
// table is spread over them.
#ifndef OUTBOARD_QUANT_NF4_CUH_
#define OUTBOARD_QUANT_NF4_CUH_

#include "quant/block_codec.cuh"
#include "quant/nf4.h"
#include "quant/nibbles.cuh"

namespace outboard::quant::device {

// Tables are constants of functions, which lie in memory once; passed by value they would be
// written to local memory for every run.
__device__ __forceinline__ Lookup16 nf4_levels() {
  static constexpr Table16 kTable = quant::NF4::levels();
  return Lookup16(kTable);
}
__device__ __forceinline__ Lookup16 nf4_thresholds() {
  static constexpr Table16 kTable = quant::NF4::sorted_thresholds();
  return Lookup16(kTable);
}

template <>
struct RunDecoder<quant::NF4> {
  float scale;
  Lookup16 levels;
  __device__ __forceinline__ explicit RunDecoder(float block_scale)
      : scale(block_scale), levels(nf4_levels()) {}

  template <int kRun>
  __device__ __forceinline__ void operator()(const uint32_t* words, float* values) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {  // an index counts modulo 16
      values[i] = exact::fma(levels(words[i / 8] >> (4 * (i % 8))), scale, 0.0f);
    }
  }
};

template <>
struct RunEncoder<quant::NF4> {
  static constexpr bool kTakesRoots = false;
  static constexpr bool kScalesAreRoots = false;
  /// Codes are at first the low bits of kBias + code.
  static constexpr float kBias = 0x1p23f + 256.0f;
  float factor;
  Lookup16 thresholds;
  bool is_live;
  __device__ __forceinline__ explicit RunEncoder(float scale)
      : factor(exact::div(1.0f, scale)), thresholds(nf4_thresholds()), is_live(scale > 0.0f) {}

  static __device__ __forceinline__ float scale(float largest) { return plain_scale(largest); }

  /// An estimate that is the code or one less, and one comparison; see NF4::kSlope.
  __device__ __forceinline__ uint32_t biased_code(float value) const {
    const float n = exact::mul(value, factor);
    const float slope = exact::fma(fabsf(n), quant::NF4::kCurvature, quant::NF4::kSlope);
    const uint32_t least = exact::bits(exact::fma(n, slope, kBias + 7.0f));
    return least + (n >= thresholds(least) ? 1u : 0u);
  }

  template <int kRun>
  __device__ __forceinline__ void operator()(const float* values, const uint32_t*,
                                             uint32_t* words) const {
    static_assert(kRun == 8);
    uint32_t codes[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) codes[i] = biased_code(values[i]);
    words[0] = is_live ? pack_nibbles<0x4B000100u>(codes) : 0x77777777u;
  }
};

using NF4 = BlockCodec<quant::NF4>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_NF4_CUH_
