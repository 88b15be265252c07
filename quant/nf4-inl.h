// The SIMD version of nf4's codes, one per target.
#include "hwy/highway.h"
#include "quant/nf4.h"
#include "quant/rounding-inl.h"
#include "quant/table16-inl.h"

#if defined(OUTBOARD_QUANT_NF4_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_NF4_INL_H_
#undef OUTBOARD_QUANT_NF4_INL_H_
#else
#define OUTBOARD_QUANT_NF4_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

/// The code of nf4 for values of at most the block's scale, whose reciprocal is `factor`: in the
/// low 4 bits of each lane; what lies above is 0x4B00010. The code is the
/// estimate or one more, which one look-up and one exact comparison settle.
struct NF4Finder {
  FloatVec factor;
  VectorLookup16 thresholds;

  HWY_INLINE explicit NF4Finder(float scale_factor)
      : factor(hn::Set(FloatTag(), scale_factor)), thresholds(NF4::sorted_thresholds()) {}
  HWY_INLINE BitsVec operator()(FloatVec value) const {
    const FloatTag df;
    const FloatVec n = hn::Mul(value, factor);
    const FloatVec slope =
        hn::MulAdd(hn::Abs(n), hn::Set(df, NF4::kCurvature), hn::Set(df, NF4::kSlope));
    const BitsVec least =
        hn::BitCast(BitsTag(), hn::MulAdd(n, slope, hn::Set(df, 0x1p23f + 263.0f)));
    const auto is_next = hn::RebindMask(BitsTag(), hn::Ge(n, thresholds.at_low_bits(least)));
    return hn::IfThenElse(is_next, hn::Add(least, hn::Set(BitsTag(), 1)), least);
  }
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
