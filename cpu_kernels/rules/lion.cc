// The CPU kernel of Lion for every SIMD target.
#include "outboard/rules/lion.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/lion.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
/// 1 or -1; +0 for either zero, NaN for NaN.
HWY_INLINE FloatVec sign(FloatVec c) {
  const FloatVec zero = broadcast(0.0f);
  const FloatVec rest = hn::IfThenElse(hn::Lt(c, zero), broadcast(-1.0f), hn::Sub(c, c));
  return hn::IfThenElse(hn::Gt(c, zero), broadcast(1.0f), rest);
}
#endif  // HWY_NATIVE_FMA

void run_lion(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<rules::Lion::Scalars<float>>();
  const auto [gradient, weight, state, elements] = tile;
  for (size_t i = 0; i < elements; i += hn::Lanes(FloatTag())) {
    const FloatVec g = hn::Mul(load(gradient + i), broadcast(s.gradient_scale));
    const FloatVec m = load(state[0] + i);
    const FloatVec step = hn::Mul(broadcast(s.lr), sign(lerp(m, g, s.one_minus_beta1)));
    store(hn::Sub(hn::Mul(load(weight + i), broadcast(s.decay)), step), weight + i);
    store(flush_subnormal(lerp(m, g, s.one_minus_beta2)), state[0] + i);
  }
#else
  run_scalar_rule<rules::Lion>(scalars, tile);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_lion);

template <>
RuleKernel resolve_kernel<rules::Lion>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_lion);
}

}  // namespace outboard::cpu
#endif
