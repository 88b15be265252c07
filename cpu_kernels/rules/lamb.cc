// The CPU kernels of LAMB for every SIMD target: the update, and the values that are measured
// first.
#include "outboard/rules/lamb.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/lamb.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
using LambScalars = rules::LAMB::Scalars<float>;

struct LambMoved {
  FloatVec m;
  FloatVec v;
  FloatVec direction;
};

/// As LAMB::move, of the elements from `i`.
template <bool kHasL2>
HWY_INLINE LambMoved lamb_move(const LambScalars& s, const RuleTile& tile, size_t i, FloatVec p) {
  const FloatVec g = hn::Mul(load(tile.gradient + i), broadcast(s.gradient_scale));
  const FloatVec m = lerp(load(tile.state[0] + i), g, s.one_minus_beta1);
  const FloatVec v = ema_of_squares(load(tile.state[1] + i), g, s.beta2, s.one_minus_beta2);
  const FloatVec root = div_by_constant(hn::Sqrt(v), s.root_correction);
  const FloatVec denominator = hn::Add(root, broadcast(s.epsilon));
  FloatVec direction = hn::Div(hn::Mul(broadcast(s.inverse_correction), m), denominator);
  if constexpr (kHasL2) direction = hn::MulAdd(broadcast(s.l2), p, direction);
  return {m, v, direction};
}

template <bool kHasL2>
void lamb_loop(const LambScalars& s, const RuleTile& tile) {
  for (size_t i = 0; i < tile.elements; i += hn::Lanes(FloatTag())) {
    const FloatVec p = load(tile.weight + i);
    const LambMoved moved = lamb_move<kHasL2>(s, tile, i, p);
    const FloatVec decayed = hn::Mul(p, broadcast(s.decay));
    store(hn::MulAdd(broadcast(s.minus_step), moved.direction, decayed), tile.weight + i);
    store(flush_subnormal(moved.m), tile.state[0] + i);
    store(flush_subnormal(moved.v), tile.state[1] + i);
  }
}

template <bool kHasL2>
void lamb_measure_loop(const LambScalars& s, const RuleTile& tile, float* values) {
  for (size_t i = 0; i < tile.elements; i += hn::Lanes(FloatTag())) {
    store(lamb_move<kHasL2>(s, tile, i, load(tile.weight + i)).direction, values + i);
  }
}
#endif  // HWY_NATIVE_FMA

void run_lamb(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<LambScalars>();
  s.l2 != 0.0f ? lamb_loop<true>(s, tile) : lamb_loop<false>(s, tile);
#else
  run_scalar_rule<rules::LAMB>(scalars, tile);
#endif
}

void measure_lamb(const RuleScalars& scalars, const RuleTile& tile, float* values) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<LambScalars>();
  s.l2 != 0.0f ? lamb_measure_loop<true>(s, tile, values)
               : lamb_measure_loop<false>(s, tile, values);
#else
  run_scalar_measure<rules::LAMB>(scalars, tile, values);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_lamb);
HWY_EXPORT(measure_lamb);

template <>
RuleKernel resolve_kernel<rules::LAMB>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_lamb);
}

template <>
MeasureKernel resolve_measure_kernel<rules::LAMB>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(measure_lamb);
}

}  // namespace outboard::cpu
#endif
