// The SIMD version of adam_update in outboard/rules/adam_moments.h, one per target, for Adam and
// AdamW.
#include "cpu_kernels/exact-inl.h"
#include "cpu_kernels/rule_kernel.h"
#include "hwy/highway.h"
#include "outboard/rules/adam_moments.h"

#if defined(OUTBOARD_CPU_KERNELS_RULES_ADAM_MOMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_RULES_ADAM_MOMENTS_INL_H_
#undef OUTBOARD_CPU_KERNELS_RULES_ADAM_MOMENTS_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_RULES_ADAM_MOMENTS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
/// The weight after a step along `m`, given the root.
template <bool kIsFinite>
HWY_INLINE FloatVec adam_weight(const rules::AdamScalars<float>& s, FloatVec weight, FloatVec m,
                                FloatVec root) {
  const FloatVec corrected = kIsFinite ? div_finite_by_constant(root, s.root_correction)
                                       : div_by_constant(root, s.root_correction);
  const FloatVec denominator = hn::Add(corrected, broadcast(s.epsilon));
  const FloatVec step = hn::Div(hn::Mul(broadcast(s.step_size), m), denominator);
  return hn::Sub(hn::Mul(weight, broadcast(s.decay)), step);
}

template <bool kHasL2>
HWY_INLINE FloatVec adam_gradient(const rules::AdamScalars<float>& s, FloatVec gradient,
                                  FloatVec weight) {
  const FloatVec g = hn::Mul(gradient, broadcast(s.gradient_scale));
  if constexpr (kHasL2) return hn::MulAdd(broadcast(s.l2), weight, g);
  return g;
}

template <bool kHasL2, bool kIsAmsgrad>
void moments_loop(const rules::AdamScalars<float> s, const RuleTile& tile) {
  const auto [gradient, weight, state, elements] = tile;
  for (size_t i = 0; i < elements; i += hn::Lanes(FloatTag())) {
    const FloatVec p = load(weight + i);
    const FloatVec g = adam_gradient<kHasL2>(s, load(gradient + i), p);
    const FloatVec m = lerp(load(state[0] + i), g, s.one_minus_beta1);
    const FloatVec v = ema_of_squares(load(state[1] + i), g, s.beta2, s.one_minus_beta2);
    FloatVec z = v;
    if constexpr (kIsAmsgrad) {
      z = max(load(state[2] + i), v);
      store(flush_subnormal(z), state[2] + i);
    }
    store(adam_weight<false>(s, p, m, hn::Sqrt(z)), weight + i);
    store(flush_subnormal(m), state[0] + i);
    store(flush_subnormal(v), state[1] + i);
  }
}
#endif  // HWY_NATIVE_FMA

/// The kernel of `Rule`, which is Adam or AdamW.
template <class Rule>
void run_moments(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<rules::AdamScalars<float>>();
  const bool has_l2 = s.l2 != 0.0f;
  if (s.amsgrad != 0) {
    has_l2 ? moments_loop<true, true>(s, tile) : moments_loop<false, true>(s, tile);
  } else {
    has_l2 ? moments_loop<true, false>(s, tile) : moments_loop<false, false>(s, tile);
  }
#else
  run_scalar_rule<Rule>(scalars, tile);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
