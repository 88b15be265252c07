// The SIMD versions of the operations in outboard/hd.h, one per target, from which the rules'
// kernels are written. Used on targets with fused multiply-add only.
#include "hwy/highway.h"
#include "outboard/types.h"

#if defined(OUTBOARD_CPU_KERNELS_EXACT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_EXACT_INL_H_
#undef OUTBOARD_CPU_KERNELS_EXACT_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_EXACT_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// At most 64 lanes, so that every vector divides a tile.
using FloatTag = hn::CappedTag<float, 64>;
using FloatVec = hn::Vec<FloatTag>;

HWY_INLINE FloatVec broadcast(float value) { return hn::Set(FloatTag(), value); }

HWY_INLINE FloatVec load(const float* from) { return hn::LoadU(FloatTag(), from); }

HWY_INLINE void store(FloatVec value, float* to) { hn::StoreU(value, FloatTag(), to); }

/// As exact::lerp for a weight below 0.5 in magnitude.
HWY_INLINE FloatVec lerp_by_less_than_half(FloatVec average, FloatVec value, float weight) {
  return hn::MulAdd(broadcast(weight), hn::Sub(value, average), average);
}

/// As exact::lerp. The weight is constant over a step, so the branch costs nothing.
HWY_INLINE FloatVec lerp(FloatVec average, FloatVec value, float weight) {
  const float magnitude = weight < 0.0f ? -weight : weight;
  return magnitude < 0.5f ? lerp_by_less_than_half(average, value, weight)
                          : hn::MulAdd(broadcast(weight - 1.0f), hn::Sub(value, average), value);
}

/// As exact::ema_of_squares.
HWY_INLINE FloatVec ema_of_squares(FloatVec average, FloatVec gradient, float beta,
                                   float one_minus_beta) {
  return hn::MulAdd(hn::Mul(broadcast(one_minus_beta), gradient), gradient,
                    hn::Mul(broadcast(beta), average));
}

/// exact::div by a constant of the step, without the divider: the quotient by the rounded
/// reciprocal, corrected by its own remainder, is the correctly rounded one (Markstein: Computation
/// of elementary functions on the IBM RISC System/6000 processor, 1990). `value` is neither
/// subnormal nor infinite.
/// The divider is what an update in cache waits for: a quarter less of its time.
HWY_INLINE FloatVec div_finite_by_constant(FloatVec value, float divisor) {
  const FloatVec reciprocal = broadcast(1.0f / divisor);
  const FloatVec quotient = hn::Mul(value, reciprocal);
  const FloatVec remainder = hn::NegMulAdd(quotient, broadcast(divisor), value);
  return hn::MulAdd(remainder, reciprocal, quotient);
}

/// The same where the value may be infinite.
HWY_INLINE FloatVec div_by_constant(FloatVec value, float divisor) {
  const FloatVec infinity =
      hn::BitCast(FloatTag(), hn::Set(hn::RebindToUnsigned<FloatTag>(), 0x7F800000u));
  return hn::IfThenElse(hn::Eq(value, infinity), hn::Mul(value, broadcast(1.0f / divisor)),
                        div_finite_by_constant(value, divisor));
}

/// As exact::max: a NaN in `b` is returned.
HWY_INLINE FloatVec max(FloatVec a, FloatVec b) { return hn::IfThenElse(hn::Gt(a, b), a, b); }

/// As exact::flush_subnormal; NaN stays.
HWY_INLINE FloatVec flush_subnormal(FloatVec a) {
  return hn::IfThenZeroElse(hn::Lt(hn::Abs(a), broadcast(1.1754943508222875e-38f)), a);
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
