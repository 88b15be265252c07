// The SIMD versions of rounding.h, one per target: load 16-bit floats as fp32, round fp32 to 16-bit
// floats. Integer operations only, because the converters of some targets truncate, flush or leave
// the rounding open.
#include "hwy/highway.h"
#include "quant/rounding.h"

#if defined(OUTBOARD_QUANT_ROUNDING_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_ROUNDING_INL_H_
#undef OUTBOARD_QUANT_ROUNDING_INL_H_
#else
#define OUTBOARD_QUANT_ROUNDING_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// At most 64 lanes, so that every vector divides a tile.
using FloatTag = hn::CappedTag<float, 64>;
using BitsTag = hn::RebindToUnsigned<FloatTag>;
using SignedTag = hn::RebindToSigned<FloatTag>;
using HalfwordTag = hn::Rebind<uint16_t, FloatTag>;
using FloatVec = hn::Vec<FloatTag>;
using BitsVec = hn::Vec<BitsTag>;

/// Lanes of `yes` where `a` > `b`, else of `no`. Both are below 2^31, so that the signed comparison
/// is right.
HWY_INLINE BitsVec if_greater(BitsVec a, BitsVec b, BitsVec yes, BitsVec no) {
  const SignedTag ds;
  const BitsTag du;
  const auto mask = hn::Gt(hn::BitCast(ds, a), hn::BitCast(ds, b));
  return hn::IfThenElse(hn::RebindMask(du, mask), yes, no);
}

/// Reads 16-bit codes, one per fp32 lane.
HWY_INLINE BitsVec load_halfwords(const uint16_t* codes) {
  return hn::PromoteTo(BitsTag(), hn::LoadU(HalfwordTag(), codes));
}

/// Writes the low 16 bits of each lane.
HWY_INLINE void store_halfwords(BitsVec lanes, uint16_t* codes) {
  hn::StoreU(hn::TruncateTo(HalfwordTag(), lanes), HalfwordTag(), codes);
}

HWY_INLINE FloatVec f32_from_bf16(BitsVec codes) {
  return hn::BitCast(FloatTag(), hn::ShiftLeft<16>(codes));
}

/// bf16 codes of `value`, as quant::bf16_nearest.
HWY_INLINE BitsVec bf16_nearest(FloatVec value) {
  const BitsTag du;
  const BitsVec b = hn::BitCast(du, value);
  const BitsVec high = hn::ShiftRight<16>(b);
  const BitsVec odd = hn::And(high, hn::Set(du, 1));
  const BitsVec rounded = hn::ShiftRight<16>(hn::Add(hn::Add(b, hn::Set(du, 0x7FFF)), odd));
  return if_greater(hn::And(b, hn::Set(du, kMagnitudeMask)), hn::Set(du, kInfinityBits),
                    hn::Or(high, hn::Set(du, 0x40)), rounded);
}

/// bf16 codes of `value` for 16 random bits per lane, as quant::bf16_stochastic.
HWY_INLINE BitsVec bf16_stochastic(FloatVec value, BitsVec random16) {
  const BitsTag du;
  const SignedTag ds;
  const BitsVec b = hn::BitCast(du, value);
  const BitsVec high = hn::ShiftRight<16>(b);
  const BitsVec magnitude = hn::And(b, hn::Set(du, kMagnitudeMask));
  const BitsVec infinity = hn::Set(du, kInfinityBits);
  const auto grown = hn::BitCast(ds, hn::ShiftRight<16>(hn::Add(magnitude, random16)));
  const BitsVec finite = hn::BitCast(du, hn::Min(grown, hn::Set(ds, 0x7F7F)));
  const BitsVec rounded = hn::Or(hn::And(high, hn::Set(du, 0x8000)), finite);
  const BitsVec special = if_greater(magnitude, infinity, hn::Or(high, hn::Set(du, 0x40)), high);
  return if_greater(infinity, magnitude, rounded, special);
}

/// The bits that split_f32 cuts: those of `value`, with any NaN replaced by the quiet one of its
/// sign.
HWY_INLINE BitsVec splittable_bits(FloatVec value) {
  const BitsTag du;
  const FloatTag df;
  const BitsVec sign = hn::And(hn::BitCast(du, value), hn::Set(du, kSignMask));
  const FloatVec quiet = hn::BitCast(df, hn::Or(sign, hn::Set(du, 0x7FC00000u)));
  return hn::BitCast(du, hn::IfThenElse(hn::IsNaN(value), quiet, value));
}

/// The upper half of what splittable_bits returned, for store_halfwords.
HWY_INLINE BitsVec split_high(BitsVec b) {
  return hn::ShiftRight<16>(hn::Add(b, hn::Set(BitsTag(), 0x8000)));
}

/// As quant::join_f32 for one vector of halves.
HWY_INLINE FloatVec load_joined(const uint16_t* high, const int16_t* low) {
  const hn::Rebind<int16_t, FloatTag> d16;
  const auto missing = hn::PromoteTo(SignedTag(), hn::LoadU(d16, low));
  const BitsVec upper = hn::ShiftLeft<16>(load_halfwords(high));
  return hn::BitCast(FloatTag(), hn::Add(upper, hn::BitCast(BitsTag(), missing)));
}

/// What split8_f32 cuts, for 16 random bits per lane: the upper 24 bits count. Rounding is an
/// addition to the bits, because those of numbers that are not rounded end in zeros.
HWY_INLINE BitsVec split8_bits(FloatVec value, BitsVec random16) {
  const BitsTag du;
  const BitsVec b = splittable_bits(value);
  const BitsVec draw = hn::And(random16, hn::Set(du, 0xFF));
  const BitsVec magnitude = hn::And(b, hn::Set(du, kMagnitudeMask));
  return hn::Add(b, if_greater(hn::Set(du, kLastSplit8Bits), magnitude, draw, hn::Zero(du)));
}

/// Bits 8 to 15 of what split8_bits returned.
HWY_INLINE void store_split8_low(BitsVec b, uint8_t* low) {
  const hn::Rebind<uint8_t, FloatTag> d8;
  hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<8>(b)), d8, low);
}

/// As quant::join8_f32 for one vector of both parts.
HWY_INLINE FloatVec load_joined8(const uint16_t* high, const int8_t* low) {
  const hn::Rebind<int8_t, FloatTag> d8;
  const auto missing = hn::ShiftLeft<8>(hn::PromoteTo(SignedTag(), hn::LoadU(d8, low)));
  const BitsVec upper = hn::ShiftLeft<16>(load_halfwords(high));
  return hn::BitCast(FloatTag(), hn::Add(upper, hn::BitCast(BitsTag(), missing)));
}

/// fp16 to fp32, as quant::f32_from_f16. Multiplying the shifted pattern by 2^112 is exact for
/// normals and subnormals.
HWY_INLINE FloatVec f32_from_f16(BitsVec codes) {
  const BitsTag du;
  const FloatTag df;
  const BitsVec sign = hn::ShiftLeft<16>(hn::And(codes, hn::Set(du, 0x8000)));
  const BitsVec magnitude = hn::And(codes, hn::Set(du, 0x7FFF));
  const BitsVec shifted = hn::ShiftLeft<13>(magnitude);
  const BitsVec finite =
      hn::BitCast(du, hn::Mul(hn::BitCast(df, shifted), hn::Set(df, 5.192296858534828e33f)));
  const BitsVec infinite = hn::Or(shifted, hn::Set(du, kInfinityBits));
  const BitsVec quiet = if_greater(magnitude, hn::Set(du, 0x7C00),
                                   hn::Or(infinite, hn::Set(du, 0x00400000)), infinite);
  const BitsVec result = if_greater(magnitude, hn::Set(du, 0x7BFF), quiet, finite);
  return hn::BitCast(df, hn::Or(sign, result));
}

/// fp16 codes of `value`, as quant::f16_nearest. Below 2^-14 the addition of 0.5, whose last place
/// is 2^-24, rounds.
HWY_INLINE BitsVec f16_nearest(FloatVec value) {
  const BitsTag du;
  const FloatTag df;
  const BitsVec b = hn::BitCast(du, value);
  const BitsVec sign = hn::ShiftRight<16>(hn::And(b, hn::Set(du, kSignMask)));
  const BitsVec magnitude = hn::And(b, hn::Set(du, kMagnitudeMask));
  const BitsVec odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1));
  const BitsVec rebased = hn::Sub(magnitude, hn::Set(du, 0x38000000u - 0x0FFFu));
  const BitsVec normal = hn::ShiftRight<13>(hn::Add(rebased, odd));
  const BitsVec half = hn::BitCast(du, hn::Set(df, 0.5f));
  const BitsVec tiny =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5f))), half);
  const BitsVec finite = if_greater(magnitude, hn::Set(du, 0x387FFFFFu), normal, tiny);
  const BitsVec bounded =
      if_greater(magnitude, hn::Set(du, 0x477FEFFFu), hn::Set(du, 0x7C00), finite);
  const BitsVec payload = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3FF));
  const BitsVec nan = hn::Or(hn::Set(du, 0x7E00), payload);
  return hn::Or(sign, if_greater(magnitude, hn::Set(du, kInfinityBits), nan, bounded));
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
