// State format e4m3_root on the device; the definition is in e4m3_root.h. A rule that has formed
// the root hands it over.
#ifndef OUTBOARD_QUANT_E4M3_ROOT_CUH_
#define OUTBOARD_QUANT_E4M3_ROOT_CUH_

#include "quant/block_codec.cuh"
#include "quant/e4m3.cuh"
#include "quant/e4m3_root.h"

namespace outboard::quant::device {

template <>
struct RunDecoder<quant::E4M3Root> {
  float unit;
  __device__ __forceinline__ explicit RunDecoder(float scale) : unit(unit_of<E4M3Levels>(scale)) {}

  template <int kRun>
  __device__ __forceinline__ void operator()(const uint32_t* words, float* values) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const float root = exact::mul(e4m3_byte(words, i), unit);
      values[i] = exact::mul(root, root);
    }
  }
};

template <>
struct RunEncoder<quant::E4M3Root> {
  static constexpr bool kTakesRoots = true;
  static constexpr bool kScalesAreRoots = true;
  float factor;
  bool is_live;
  __device__ __forceinline__ explicit RunEncoder(float scale)
      : factor(factor_of<E4M3Levels>(scale)), is_live(scale > 0.0f) {}

  static __device__ __forceinline__ float scale(float largest_root) {
    return plain_scale(largest_root);
  }

  /// quant::e4m3_stochastic, and 1 instead of 0 for what is above 0. With 2^-6 added and cut off, a
  /// subnormal value has its code and 20 more bits where a normal one has them.
  __device__ __forceinline__ uint32_t code(float root, uint32_t draw) const {
    const float value = exact::mul(root, factor);
    const float smallest = exact::from_bits(kNormalE4M3);
    const uint32_t raised = exact::bits(__fadd_rz(value, smallest)) - kNormalE4M3;
    const uint32_t parts = value < smallest ? raised : exact::bits(value) - kE4M3Rebase;
    const uint32_t rounded = (parts + (draw << 4)) >> 20;
    const uint32_t least = root > 0.0f ? 1u : 0u;
    return max(min(rounded, 0x7Eu), least);
  }

  template <int kRun>
  __device__ __forceinline__ void operator()(const float* roots, const uint32_t* draws,
                                             uint32_t* words) const {
    uint32_t codes[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      codes[i] = code(roots[i], (draws[i / 2] >> (16 * (i % 2))) & 0xFFFFu);
    }
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) words[i] = is_live ? pack_bytes(codes + 4 * i) : 0;
  }
};

using E4M3Root = BlockCodec<quant::E4M3Root>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_E4M3_ROOT_CUH_
