// The SIMD version of uniform16.h, one per target.
#include "hwy/highway.h"
#include "quant/rounding-inl.h"
#include "quant/uniform16.h"

#if defined(OUTBOARD_QUANT_UNIFORM16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_UNIFORM16_INL_H_
#undef OUTBOARD_QUANT_UNIFORM16_INL_H_
#else
#define OUTBOARD_QUANT_UNIFORM16_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

/// As UniformFormat16::Encoder.
template <UniformTies kTies>
struct UniformVectorEncoder {
  FloatVec scale;
  HWY_INLINE explicit UniformVectorEncoder(float s) : scale(hn::Set(FloatTag(), s)) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    const FloatTag df;
    const SignedTag ds;
    const auto sixteenths = hn::Mul(hn::Div(value, scale), hn::Set(df, 16.0f));
    const auto whole = hn::ConvertTo(ds, sixteenths);
    const auto rest = hn::Sub(sixteenths, hn::ConvertTo(df, whole));
    const auto half = hn::Set(df, 0.5f);
    const auto is_up = kTies == UniformTies::kUp ? hn::Ge(rest, half) : hn::Gt(rest, half);
    // A mask as a vector is -1 or 0.
    const auto less = hn::VecFromMask(ds, hn::Not(hn::RebindMask(ds, is_up)));
    const auto code = hn::Max(hn::Add(whole, less), hn::Zero(ds));
    return hn::BitCast(BitsTag(), hn::Min(code, hn::Set(ds, 15)));
  }
};

/// As UniformFormat16::Decoder.
struct UniformVectorDecoder {
  FloatVec scale;
  HWY_INLINE explicit UniformVectorDecoder(float s) : scale(hn::Set(FloatTag(), s)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    const auto number = hn::BitCast(SignedTag(), hn::Add(code, hn::Set(BitsTag(), 1)));
    const auto sixteenth = hn::Set(FloatTag(), 0.0625f);
    return hn::Mul(hn::Mul(hn::ConvertTo(FloatTag(), number), sixteenth), scale);
  }
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
