// The SIMD version of float8.h, one per target. Codes are the low bits of their lanes.
#include "hwy/highway.h"
#include "quant/float8.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_FLOAT8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_FLOAT8_INL_H_
#undef OUTBOARD_QUANT_FLOAT8_INL_H_
#else
#define OUTBOARD_QUANT_FLOAT8_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

/// As quant::f32_from_e4m3.
HWY_INLINE FloatVec f32_from_e4m3(BitsVec code) {
  const BitsTag du;
  const FloatTag df;
  const BitsVec sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 0x80)));
  const BitsVec magnitude = hn::And(code, hn::Set(du, 0x7F));
  const BitsVec normal = hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(du, kE4M3Rebase));
  const auto number = hn::ConvertTo(df, hn::BitCast(SignedTag(), magnitude));
  const BitsVec subnormal = hn::BitCast(du, hn::Mul(number, hn::Set(df, 0x1p-9f)));
  const BitsVec finite = if_greater(hn::Set(du, 8), magnitude, subnormal, normal);
  const BitsVec bits = if_greater(magnitude, hn::Set(du, 0x7E), hn::Set(du, 0x7FC00000u), finite);
  return hn::BitCast(df, hn::Or(sign, bits));
}

HWY_INLINE BitsVec smaller_code(BitsVec code, uint32_t largest) {
  const SignedTag ds;
  const auto bound = hn::Set(ds, static_cast<int32_t>(largest));
  return hn::BitCast(BitsTag(), hn::Min(hn::BitCast(ds, code), bound));
}

/// As quant::e4m3_nearest.
HWY_INLINE BitsVec e4m3_nearest(FloatVec value) {
  const BitsTag du;
  const FloatTag df;
  const BitsVec b = hn::BitCast(du, value);
  const BitsVec magnitude = hn::And(b, hn::Set(du, kMagnitudeMask));
  const BitsVec odd = hn::And(hn::ShiftRight<20>(magnitude), hn::Set(du, 1));
  const BitsVec rebased = hn::Sub(magnitude, hn::Set(du, kE4M3Rebase - 0x7FFFFu));
  const BitsVec normal = hn::ShiftRight<20>(hn::Add(rebased, odd));
  const FloatVec large = hn::Set(df, 0x1p14f);
  const FloatVec aligned = hn::Add(hn::BitCast(df, magnitude), large);
  const BitsVec tiny = hn::Sub(hn::BitCast(du, aligned), hn::BitCast(du, large));
  const BitsVec code = if_greater(hn::Set(du, kNormalE4M3), magnitude, tiny, normal);
  const BitsVec sign = hn::And(hn::ShiftRight<24>(b), hn::Set(du, 0x80));
  return hn::Or(sign, smaller_code(code, 0x7F));
}

/// As quant::e4m3_stochastic.
HWY_INLINE BitsVec e4m3_stochastic(FloatVec value, BitsVec random16) {
  const BitsTag du;
  const FloatTag df;
  const BitsVec b = hn::BitCast(du, value);
  const BitsVec rebased = hn::Sub(b, hn::Set(du, kE4M3Rebase));
  const BitsVec normal = hn::ShiftRight<20>(hn::Add(rebased, hn::ShiftLeft<4>(random16)));
  const FloatVec bounded = hn::Min(value, hn::Set(df, 0x1p-6f));
  const auto parts = hn::ConvertTo(SignedTag(), hn::Mul(bounded, hn::Set(df, 0x1p25f)));
  const BitsVec tiny = hn::ShiftRight<16>(hn::Add(hn::BitCast(du, parts), random16));
  const BitsVec code = if_greater(hn::Set(du, kNormalE4M3), b, tiny, normal);
  return smaller_code(code, 0x7E);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
