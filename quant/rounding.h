// Conversions between fp32 and 16-bit floats, bit by bit, for host and device: nearest, stochastic
// and split in two. These scalar functions define what every SIMD and GPU version stores. Only
// integer operations decide a rounding, so no floating-point mode and no hardware converter can
// change a bit.
#ifndef OUTBOARD_QUANT_ROUNDING_H_
#define OUTBOARD_QUANT_ROUNDING_H_

#include <cstdint>

#include "outboard/hd.h"

namespace outboard::quant {

inline constexpr uint32_t kSignMask = 0x80000000u;
inline constexpr uint32_t kMagnitudeMask = 0x7FFFFFFFu;
inline constexpr uint32_t kInfinityBits = 0x7F800000u;
/// The largest finite number of 24 bits; what lies above it is rounded to it and not to infinity.
inline constexpr uint32_t kLastSplit8Bits = 0x7F7FFF00u;

OUTBOARD_HD float f32_from_bf16(uint16_t code) {
  return exact::from_bits(static_cast<uint32_t>(code) << 16);
}

/// Nearest even. A NaN keeps its upper payload and becomes quiet; what overflows becomes infinite.
OUTBOARD_HD uint16_t bf16_nearest(float value) {
  const uint32_t b = exact::bits(value);
  if ((b & kMagnitudeMask) > kInfinityBits) return static_cast<uint16_t>((b >> 16) | 0x40u);
  return static_cast<uint16_t>((b + 0x7FFFu + ((b >> 16) & 1u)) >> 16);
}

/// The magnitude grows with probability (discarded bits) / 65536, where `random16` is uniform in
/// [0, 65535]. Values that bf16 holds never move; a finite value stays finite; NaN as bf16_nearest.
OUTBOARD_HD uint16_t bf16_stochastic(float value, uint32_t random16) {
  const uint32_t b = exact::bits(value);
  const uint32_t magnitude = b & kMagnitudeMask;
  if (magnitude > kInfinityBits) return static_cast<uint16_t>((b >> 16) | 0x40u);
  if (magnitude == kInfinityBits) return static_cast<uint16_t>(b >> 16);
  const uint32_t rounded = (magnitude + random16) >> 16;
  return static_cast<uint16_t>(((b & kSignMask) >> 16) | (rounded < 0x7F80u ? rounded : 0x7F7Fu));
}

/// An fp32 value cut in two without loss: `high` is the bf16 weight (ties away from zero), `low`
/// what is missing.
struct SplitF32 {
  uint16_t high;
  int16_t low;
};

/// With bits = 65536 T + R: (T, R) for R < 0x8000, else (T + 1, R - 65536). Any NaN becomes the
/// quiet NaN of its sign.
OUTBOARD_HD SplitF32 split_f32(float value) {
  uint32_t b = exact::bits(value);
  // Without this, 0x7FFF8000 and above would wrap to -0, and a NaN with a low payload would give an
  // infinite `high`.
  if ((b & kMagnitudeMask) > kInfinityBits) b = (b & kSignMask) | 0x7FC00000u;
  return {static_cast<uint16_t>((b + 0x8000u) >> 16), static_cast<int16_t>(b & 0xFFFFu)};
}

/// The inverse of split_f32.
OUTBOARD_HD float join_f32(uint16_t high, int16_t low) {
  return exact::from_bits((static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(low));
}

/// As SplitF32, for the upper 24 bits of an fp32 value.
struct Split8F32 {
  uint16_t high;
  int8_t low;
};

/// The value rounded to a multiple of 256 units in its last place, then cut without loss. The
/// magnitude grows with probability (last 8 bits) / 256, where the last 8 bits of `random` are
/// uniform. A finite value stays finite; any NaN becomes the quiet NaN of its sign.
OUTBOARD_HD Split8F32 split8_f32(float value, uint32_t random) {
  uint32_t b = exact::bits(value);
  const uint32_t magnitude = b & kMagnitudeMask;
  if (magnitude > kInfinityBits) b = (b & kSignMask) | 0x7FC00000u;
  if (magnitude < kLastSplit8Bits) b += random & 0xFFu;
  return {static_cast<uint16_t>((b + 0x8000u) >> 16), static_cast<int8_t>(b >> 8 & 0xFFu)};
}

/// The inverse of split8_f32 for values that it does not round.
OUTBOARD_HD float join8_f32(uint16_t high, int8_t low) {
  return exact::from_bits((static_cast<uint32_t>(high) << 16) + (static_cast<uint32_t>(low) << 8));
}

OUTBOARD_HD float f32_from_f16(uint16_t code) {
  const uint32_t sign = (static_cast<uint32_t>(code) & 0x8000u) << 16;
  const uint32_t magnitude = code & 0x7FFFu;
  if (magnitude >= 0x7C00u) {
    const uint32_t quiet = magnitude > 0x7C00u ? 0x00400000u : 0u;
    return exact::from_bits(sign | kInfinityBits | quiet | ((magnitude & 0x3FFu) << 13));
  }
  if (magnitude >= 0x0400u) return exact::from_bits(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal or zero: magnitude * 2^-24, exact and never subnormal in fp32.
  const float value = exact::mul(static_cast<float>(magnitude), 5.9604644775390625e-8f);
  return exact::from_bits(sign | exact::bits(value));
}

/// Nearest even, with subnormals. A NaN keeps its upper payload and becomes quiet; what overflows
/// becomes infinite.
OUTBOARD_HD uint16_t f16_nearest(float value) {
  const uint32_t b = exact::bits(value);
  const uint32_t sign = (b & kSignMask) >> 16;
  const uint32_t magnitude = b & kMagnitudeMask;
  if (magnitude > kInfinityBits) {
    return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  }
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above
  if (magnitude >= 0x38800000u) {  // 2^-14 and above: normal
    const uint32_t rebased = magnitude - 0x38000000u;
    return static_cast<uint16_t>(sign | ((rebased + 0x0FFFu + ((rebased >> 13) & 1u)) >> 13));
  }
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // below 2^-25
  const uint32_t shift = 126u - (magnitude >> 23);                  // 14 ... 24
  const uint32_t mantissa = (magnitude & 0x007FFFFFu) | 0x00800000u;
  const uint32_t kept = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1u);
  const uint32_t half = 1u << (shift - 1u);
  const uint32_t up = rest > half || (rest == half && (kept & 1u) != 0) ? 1u : 0u;
  return static_cast<uint16_t>(sign | (kept + up));
}

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_ROUNDING_H_
