// Conversions between fp32 and the 8-bit float e4m3 (4 bits of exponent, bias 7, 3 of mantissa,
// subnormals, no infinity, NaN 0x7F and 0xFF), bit by bit, for host and device. As in rounding.h,
// integer operations decide a rounding.
#ifndef OUTBOARD_QUANT_FLOAT8_H_
#define OUTBOARD_QUANT_FLOAT8_H_

#include <cstdint>

#include "outboard/hd.h"
#include "quant/rounding.h"

namespace outboard::quant {

/// The largest finite value, code 0x7E.
inline constexpr float kLargestE4M3 = 448.0f;
/// Fp32 bits of 2^-6, below which codes are subnormal: multiples of 2^-9.
inline constexpr uint32_t kNormalE4M3 = 0x3C800000u;
/// What the exponents of normal codes differ by, in fp32 bits.
inline constexpr uint32_t kE4M3Rebase = 0x3C000000u;

OUTBOARD_HD float f32_from_e4m3(uint8_t code) {
  const uint32_t sign = (uint32_t{code} & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7Fu;
  if (magnitude == 0x7Fu) return exact::from_bits(sign | 0x7FC00000u);
  const float subnormal = exact::mul(static_cast<float>(magnitude), 0x1p-9f);
  const uint32_t bits = magnitude < 8 ? exact::bits(subnormal) : (magnitude << 20) + kE4M3Rebase;
  return exact::from_bits(sign | bits);
}

/// Nearest even. Magnitudes above 464, which would round to 480, become NaN.
OUTBOARD_HD uint8_t e4m3_nearest(float value) {
  const uint32_t b = exact::bits(value);
  const uint32_t magnitude = b & kMagnitudeMask;
  const uint32_t rebased = magnitude - kE4M3Rebase;
  uint32_t code = (rebased + 0x7FFFFu + ((rebased >> 20) & 1u)) >> 20;
  if (magnitude < kNormalE4M3) {  // the last place of 2^14 is 2^-9
    code = exact::bits(exact::add(exact::from_bits(magnitude), 0x1p14f)) - 0x46800000u;
  }
  return static_cast<uint8_t>((b >> 24 & 0x80u) | (code < 0x7Fu ? code : 0x7Fu));
}

/// Up with probability (discarded part) / (gap), for a value in [0, 464] and 16 uniform random
/// bits; never above the largest finite code.
OUTBOARD_HD uint8_t e4m3_stochastic(float value, uint32_t random16) {
  const uint32_t b = exact::bits(value);
  uint32_t code = (b - kE4M3Rebase + (random16 << 4)) >> 20;
  if (b < kNormalE4M3) {
    const auto parts = static_cast<int32_t>(exact::mul(value, 0x1p25f));  // of 2^-9, 65536 each
    code = (static_cast<uint32_t>(parts) + random16) >> 16;
  }
  return static_cast<uint8_t>(code < 0x7Eu ? code : 0x7Eu);
}

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_FLOAT8_H_
