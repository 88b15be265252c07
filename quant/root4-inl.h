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

/// The code of root4 for a position of at most 16, in the low 4 bits of each lane; what lies above
/// is 0x4B00000. The scalar definition in other words: its sides are compared 2^16 times as large,
/// and y + 2^23 - 3/2 is rounded to 2^23 + floor(y) - 1, or to one less for whole numbers, where
/// either choice gives the same code.
HWY_INLINE BitsVec root4_code(FloatVec y, BitsVec random16) {
  const FloatTag df;
  const FloatVec code = hn::Max(hn::Add(y, hn::Set(df, 0x1p23f - 1.5f)), hn::Set(df, 0x1p23f));
  const FloatVec next = hn::MulAdd(code, hn::Set(df, 0x1p16f), hn::Set(df, 0x1p17f - 0x1p39f));
  const FloatVec past = hn::Sub(y, hn::Sub(code, hn::Set(df, 0x1p23f - 1.0f)));
  const FloatVec draw = hn::Mul(hn::ConvertTo(df, hn::BitCast(SignedTag(), random16)), y);
  const auto is_up = hn::RebindMask(BitsTag(), hn::Lt(draw, hn::Mul(next, past)));
  const BitsVec least = hn::BitCast(BitsTag(), code);
  return hn::IfThenElse(is_up, hn::Add(least, hn::Set(BitsTag(), 1)), least);
}

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
