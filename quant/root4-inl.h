// What the SIMD versions of root4 and root4_nearest share, one per target.
#include "hwy/highway.h"
#include "quant/root4.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_ROOT4_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_ROOT4_INL_H_
#undef OUTBOARD_QUANT_ROOT4_INL_H_
#else
#define OUTBOARD_QUANT_ROOT4_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

/// As Root4Position.
struct VectorRoot4Position {
  FloatVec factor;
  HWY_INLINE explicit VectorRoot4Position(float scale)
      : factor(hn::Set(FloatTag(), Root4Position(scale).factor)) {}
  HWY_INLINE FloatVec operator()(FloatVec value) const {
    return hn::Min(hn::Mul(hn::Sqrt(value), factor), hn::Set(FloatTag(), 16.0f));
  }
};

struct Root4Decoder {
  FloatVec unit;
  HWY_INLINE explicit Root4Decoder(float scale)
      : unit(hn::Set(FloatTag(), Root4::Decoder(scale).unit)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    const FloatTag df;
    const auto index = hn::ConvertTo(df, hn::BitCast(SignedTag(), code));
    const auto level = hn::Add(index, hn::Set(df, 1.0f));
    return hn::Mul(hn::Mul(level, level), unit);
  }
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
