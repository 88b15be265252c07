// dynamic_map.h on the device: one reciprocal per run of a block instead of a division per element.
#ifndef OUTBOARD_QUANT_DYNAMIC_MAP_CUH_
#define OUTBOARD_QUANT_DYNAMIC_MAP_CUH_

#include "quant/block_codec.cuh"
#include "quant/companding.cuh"
#include "quant/dynamic_map.h"

namespace outboard::quant::device {

/// RunEncoder of a format with the dynamic map. Scale and values are multiplied by a power of two
/// that brings the scale near 1; where that is not exact the quotient is far below the first
/// threshold, and keeps its sign. Then the quotient by the correctly rounded reciprocal, corrected
/// by its own remainder, is the correctly rounded one (Markstein 1990).
template <class Definition>
struct DynamicRunEncoder {
  static constexpr bool kTakesRoots = false;
  static constexpr bool kScalesAreRoots = false;
  float power;
  float divisor;
  float reciprocal;
  bool is_live;

  __device__ __forceinline__ explicit DynamicRunEncoder(float scale)
      : power(power_for(scale)),
        divisor(exact::mul(scale, power)),
        reciprocal(exact::div(1.0f, divisor)),
        is_live(scale > 0.0f) {}

  static __device__ __forceinline__ float scale(float largest) {
    return Definition::scale(largest);
  }

  /// As exact::div(value, scale), or as far below the first threshold.
  __device__ __forceinline__ float quotient(float value) const {
    const float dividend = exact::mul(value, power);
    const float rough = exact::mul(dividend, reciprocal);
    const float corrected = exact::fma(exact::fma(-rough, divisor, dividend), reciprocal, rough);
    return copysignf(corrected, value);  // the correction makes -0 positive
  }

  template <int kRun>
  __device__ __forceinline__ void operator()(const float* values, const uint32_t*,
                                             uint32_t* words) const {
    uint32_t codes[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) codes[i] = Definition::code_of(quotient(values[i]));
    const uint32_t zeros = uint32_t{Definition::code_of(0.0f)} * 0x01010101u;
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) words[i] = is_live ? pack_bytes(codes + 4 * i) : zeros;
  }

 private:
  static __device__ __forceinline__ float power_for(float scale) {
    const int exponent = static_cast<int>(exact::bits(scale) >> 23);  // of 0 and NaN: some power
    const int opposite = min(max(254 - exponent, 1), 253);
    return exact::from_bits(static_cast<uint32_t>(opposite) << 23);
  }
};

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_DYNAMIC_MAP_CUH_
