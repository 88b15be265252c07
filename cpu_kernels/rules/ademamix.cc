// The CPU kernel of AdEMAMix for every SIMD target.
#include "outboard/rules/ademamix.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/ademamix.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

void run_ademamix(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<rules::AdEMAMix::Scalars<float>>();
  const auto [gradient, weight, state, elements] = tile;
  for (size_t i = 0; i < elements; i += hn::Lanes(FloatTag())) {
    const FloatVec g = hn::Mul(load(gradient + i), broadcast(s.gradient_scale));
    const FloatVec fast = lerp(load(state[0] + i), g, s.one_minus_beta1);
    const FloatVec v = ema_of_squares(load(state[1] + i), g, s.beta2, s.one_minus_beta2);
    const FloatVec slow = lerp(load(state[2] + i), g, s.one_minus_beta3);
    const FloatVec mixed =
        hn::MulAdd(broadcast(s.alpha), slow, hn::Mul(broadcast(s.inverse_correction), fast));
    const FloatVec root = div_by_constant(hn::Sqrt(v), s.root_correction);
    const FloatVec denominator = hn::Add(root, broadcast(s.epsilon));
    const FloatVec step = hn::Div(hn::Mul(broadcast(s.lr), mixed), denominator);
    store(hn::Sub(hn::Mul(load(weight + i), broadcast(s.decay)), step), weight + i);
    store(flush_subnormal(fast), state[0] + i);
    store(flush_subnormal(v), state[1] + i);
    store(flush_subnormal(slow), state[2] + i);
  }
#else
  run_scalar_rule<rules::AdEMAMix>(scalars, tile);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_ademamix);

template <>
RuleKernel resolve_kernel<rules::AdEMAMix>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_ademamix);
}

}  // namespace outboard::cpu
#endif
