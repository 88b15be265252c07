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

/// The square root of `a` >= 1, off by at most 3.8e-4 of itself, plus `offset`. The reciprocal root
/// of x86 is that good; other targets' is not.
HWY_INLINE FloatVec rough_sqrt_plus(FloatVec a, float offset) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_NATIVE_FMA
  return hn::MulAdd(a, hn::ApproximateReciprocalSqrt(a), hn::Set(FloatTag(), offset));
#else
  return hn::Add(hn::Sqrt(a), hn::Set(FloatTag(), offset));
#endif
}

/// quant::nearest_square of fl(value * factor) for values >= 0, as long as it is below 256: in the
/// low byte of each lane; what lies above is 0x4B0000. sqrt(1.002 (a + 1)) - 1 rounds to the code
/// or to one less, for every root within 3.8e-4, and adding 2^23 rounds it and leaves it in the low
/// bits. With the estimate k, a >= k^2 + k + 1/2 exactly if a - (k + 1/2)^2 >= 1/4, and the left
/// side is one rounding of an exact value; (k + 1/2)^2 is exact, so this holds without fused
/// multiply-add, too. Equal to the scalar definition for all 1.2e9 floats a of codes up to 255.
/// Three operations less than rounding and converting the root of a - 1/4.
///
/// With `kLeast` 1, codes are at least 1: sqrt(1.002 (a + 2.4)) - 1 rounds to 1 up to the threshold
/// of code 2, and above it to the code or to one less.
template <int kLeast>
struct SquareFinder {
  static_assert(kLeast == 0 || kLeast == 1);
  FloatVec factor;
  FloatVec widened;

  HWY_INLINE explicit SquareFinder(float scale_factor)
      : factor(hn::Set(FloatTag(), scale_factor)),
        widened(hn::Set(FloatTag(), scale_factor * 1.002f)) {}
  HWY_INLINE BitsVec operator()(FloatVec value) const {
    const FloatTag df;
    constexpr float kShift = kLeast == 0 ? 1.002f : 1.002f * 2.4f;
    const FloatVec shifted = hn::MulAdd(value, widened, hn::Set(df, kShift));
    const FloatVec estimate = rough_sqrt_plus(shifted, 0x1p23f - 1.0f);
    const FloatVec middle = hn::Sub(estimate, hn::Set(df, 0x1p23f - 0.5f));
    const FloatVec above = hn::NegMulAdd(middle, middle, hn::Mul(value, factor));
    const auto is_next = hn::RebindMask(BitsTag(), hn::Ge(above, hn::Set(df, 0.25f)));
    const BitsVec code = hn::BitCast(BitsTag(), estimate);
    return hn::IfThenElse(is_next, hn::Add(code, hn::Set(BitsTag(), 1)), code);
  }
};

/// The code of sym8, in the low byte of each lane.
HWY_INLINE BitsVec sym8_code(const SquareFinder<0>& find, FloatVec value) {
  const BitsVec code = find(hn::Abs(value));
  const auto is_negative = hn::RebindMask(BitsTag(), hn::Lt(value, hn::Zero(FloatTag())));
  return hn::IfThenElse(is_negative, hn::Sub(hn::Zero(BitsTag()), code), code);
}

/// The code of root8 for the root of a second moment: 0 where that does not exist, else at least 1.
template <class Mask>
HWY_INLINE BitsVec root8_code(const SquareFinder<1>& find, FloatVec root, Mask exists) {
  return hn::IfThenElseZero(hn::RebindMask(BitsTag(), exists), find(root));
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
