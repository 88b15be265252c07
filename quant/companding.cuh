// companding.h on the device, in as few instructions as the hardware allows: conversions between
// codes and floats by adding a power of two whose unit in the last place is 1, instead of the
// slower converters. Bits are those of companding.h.
#ifndef OUTBOARD_QUANT_COMPANDING_CUH_
#define OUTBOARD_QUANT_COMPANDING_CUH_

#include <cstdint>

#include "quant/companding.h"

namespace outboard::quant::device {

/// 2^23: a float from here on has the low bits of the integer that was added to it.
inline constexpr float kUnsignedBias = 8388608.0f;

/// kUnsignedBias + byte `i` of `words`.
__device__ __forceinline__ float biased_byte(const uint32_t* words, int i) {
  return exact::from_bits(__byte_perm(words[i / 4], 0x4B000000u, 0x7440u | (i % 4)));
}

/// Packs the low bytes of four words.
__device__ __forceinline__ uint32_t pack_bytes(const uint32_t* words) {
  const uint32_t low = __byte_perm(words[0], words[1], 0x0040u);
  const uint32_t high = __byte_perm(words[2], words[3], 0x0040u);
  return __byte_perm(low, high, 0x5410u);
}

/// The signs of two floats, given by their bits, as bytes 0 and 1: 255 for a negative one, else 0.
__device__ __forceinline__ uint32_t pack_two_signs(uint32_t first, uint32_t second) {
  uint32_t signs;  // selectors from 8 on replicate a byte's sign; __byte_perm has none
  asm("prmt.b32 %0, %1, %2, 0xFB;" : "=r"(signs) : "r"(first), "r"(second));
  return signs;
}

/// A byte for each of four floats.
__device__ __forceinline__ uint32_t pack_signs(const uint32_t* bits) {
  return __byte_perm(pack_two_signs(bits[0], bits[1]), pack_two_signs(bits[2], bits[3]), 0x5410u);
}

/// Bytes of at most 127, negated where `signs` has 255. What is taken from 128 borrows from no
/// neighbour.
__device__ __forceinline__ uint32_t negate_bytes(uint32_t magnitudes, uint32_t signs) {
  const uint32_t negated = (0x80808080u - magnitudes) ^ 0x80808080u;
  return (negated & signs) | (magnitudes & ~signs);
}

/// kUnsignedBias + quant::nearest_square(a), for a in [0, 66000]. What it returns for NaN is some
/// float. The whole part of a root that is too small by 0.14 % at most is the result or one less up
/// to 362; where the next square is nearer, a >= (estimate + 1/2)^2 + 1/4, which is exact.
__device__ __forceinline__ float biased_nearest_square(float a) {
  const float estimate = __fmaf_rd(rough_sqrt(a), 0.999f, kUnsignedBias);
  const float middle = exact::sub(estimate, kUnsignedBias - 0.5f);
  const float next = exact::fma(middle, middle, 0.25f);
  return a >= next ? exact::add(estimate, 1.0f) : estimate;
}

/// exact::div(value, kLevels) for a value that is 0, NaN or at least 2^-100, without the divider:
/// the quotient by the rounded reciprocal, corrected by its own remainder, is the correctly rounded
/// one (Markstein 1990).
template <class Definition>
__device__ __forceinline__ float unit_of(float scale) {
  constexpr float kReciprocal = 1.0f / Definition::kLevels;
  const float quotient = exact::mul(scale, kReciprocal);
  const float remainder = exact::fma(-quotient, Definition::kLevels, scale);
  return exact::fma(remainder, kReciprocal, quotient);
}

/// exact::div(kLevels, scale) for a scale of 2^-100 or more, without branches: a refined
/// reciprocal, and the quotient corrected by its own remainder. Equal for every mantissa. What it
/// returns for 0 is not used. Large scales are divided by a power of two first, because their
/// reciprocals would be subnormal.
template <class Definition>
__device__ __forceinline__ float factor_of(float scale) {
  const float fraction = scale > 0x1p100f ? 0x1p-32f : 1.0f;
  const float divisor = exact::mul(scale, fraction);
  float rough;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(rough) : "f"(divisor));
  const float reciprocal = exact::fma(rough, exact::fma(-divisor, rough, 1.0f), rough);
  const float quotient = exact::mul(Definition::kLevels, reciprocal);
  const float remainder = exact::fma(-quotient, divisor, Definition::kLevels);
  return exact::mul(exact::fma(remainder, reciprocal, quotient), fraction);
}

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_COMPANDING_CUH_
