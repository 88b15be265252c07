// State format root8 on the device; the definition is in root8.h. A rule that has formed the root
// hands it over, which saves the dearest instruction of the encoder.
#ifndef OUTBOARD_QUANT_ROOT8_CUH_
#define OUTBOARD_QUANT_ROOT8_CUH_

#include "quant/block_codec.cuh"
#include "quant/companding.cuh"
#include "quant/root8.h"

namespace outboard::quant::device {

template <>
struct RunDecoder<quant::Root8> {
  float unit;
  __device__ __forceinline__ explicit RunDecoder(float scale)
      : unit(unit_of<quant::Root8>(scale)) {}

  template <int kRun>
  __device__ __forceinline__ void operator()(const uint32_t* words, float* values) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const float code = exact::sub(biased_byte(words, i), kUnsignedBias);
      const float root = exact::mul(exact::mul(code, code), unit);
      values[i] = exact::mul(root, root);
    }
  }
};

template <>
struct RunEncoder<quant::Root8> {
  static constexpr bool kTakesRoots = true;
  static constexpr bool kScalesAreRoots = true;
  float factor;
  bool is_live;
  __device__ __forceinline__ explicit RunEncoder(float scale)
      : factor(factor_of<quant::Root8>(scale)), is_live(scale > 0.0f) {}

  static __device__ __forceinline__ float scale(float largest_root) {
    return plain_scale(largest_root);
  }

  /// kArePositive: no root is 0. From 1/2 on, which is where code 1 begins, nothing is coded as 0.
  template <int kRun, bool kArePositive = false>
  __device__ __forceinline__ void operator()(const float* roots, const uint32_t*,
                                             uint32_t* words) const {
    uint32_t codes[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const float least = kArePositive || roots[i] > 0.0f ? 0.5f : 0.0f;
      codes[i] = exact::bits(biased_nearest_square(fmaxf(exact::mul(roots[i], factor), least)));
    }
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) words[i] = is_live ? pack_bytes(codes + 4 * i) : 0;
  }
};

using Root8 = BlockCodec<quant::Root8>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_ROOT8_CUH_
