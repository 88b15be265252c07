// What the SIMD versions of root8 and root8s share, one per target.
#include "hwy/highway.h"
#include "quant/root8.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_ROOT8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_ROOT8_INL_H_
#undef OUTBOARD_QUANT_ROOT8_INL_H_
#else
#define OUTBOARD_QUANT_ROOT8_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root8Decoder {
  FloatVec unit;
  HWY_INLINE explicit Root8Decoder(float scale)
      : unit(hn::Set(FloatTag(), Root8::Decoder(scale).unit)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    const auto index = hn::ConvertTo(FloatTag(), hn::BitCast(SignedTag(), code));
    const FloatVec root = hn::Mul(hn::Mul(index, index), unit);
    return hn::Mul(root, root);
  }
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
