// The SIMD version of companding.h, one per target.
#include "hwy/highway.h"
#include "quant/companding.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_COMPANDING_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_COMPANDING_INL_H_
#undef OUTBOARD_QUANT_COMPANDING_INL_H_
#else
#define OUTBOARD_QUANT_COMPANDING_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

/// As quant::rough_sqrt. The reciprocal root of x86 is good to 3.7e-4 and better; other targets' is
/// not.
HWY_INLINE FloatVec rough_sqrt(FloatVec a) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_NATIVE_FMA
  const FloatVec positive = hn::Max(a, hn::Set(FloatTag(), 0x1p-100f));
  return hn::Mul(positive, hn::ApproximateReciprocalSqrt(positive));
#else
  return hn::Sqrt(a);
#endif
}

/// As quant::nearest_square, as integers. Also right without fused multiply-add: the values on
/// which a second rounding could act are far from any integer and a half.
HWY_INLINE BitsVec nearest_square(FloatVec a) {
  const FloatTag df;
  const auto estimate =
      hn::Round(hn::MulAdd(rough_sqrt(a), hn::Set(df, 0.999f), hn::Set(df, -0.5f)));
  const auto next = hn::Add(hn::MulAdd(estimate, estimate, estimate), hn::Set(df, 0.5f));
  const auto index = hn::ConvertTo(SignedTag(), estimate);
  const auto is_next = hn::RebindMask(SignedTag(), hn::Ge(a, next));
  return hn::BitCast(BitsTag(), hn::Sub(index, hn::VecFromMask(SignedTag(), is_next)));
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
