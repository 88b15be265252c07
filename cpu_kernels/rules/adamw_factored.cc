// The CPU kernel of AdamWFactored for every SIMD target; its first pass is cpu_kernels/factors.cc.
#include "outboard/rules/adamw_factored.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/adamw_factored.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
void adamw_factored_loop(const rules::AdamWFactored::Scalars<float>& s, const RuleTile& tile) {
  for (size_t i = 0; i < tile.elements; i += hn::Lanes(FloatTag())) {
    const FloatVec g = hn::Mul(load(tile.gradient + i), broadcast(s.gradient_scale));
    const FloatVec m = lerp(load(tile.state[0] + i), g, s.one_minus_beta1);
    const FloatVec root = hn::Sqrt(load(tile.state[1] + i));
    const FloatVec corrected = div_by_constant(root, s.root_correction);
    const FloatVec denominator = hn::Add(corrected, broadcast(s.epsilon));
    const FloatVec step = hn::Div(hn::Mul(broadcast(s.step_size), m), denominator);
    const FloatVec decayed = hn::Mul(load(tile.weight + i), broadcast(s.decay));
    store(hn::Sub(decayed, step), tile.weight + i);
    store(flush_subnormal(m), tile.state[0] + i);
  }
}
#endif  // HWY_NATIVE_FMA

void run_adamw_factored(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  adamw_factored_loop(scalars.as<rules::AdamWFactored::Scalars<float>>(), tile);
#else
  run_scalar_rule<rules::AdamWFactored>(scalars, tile);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_adamw_factored);

template <>
RuleKernel resolve_kernel<rules::AdamWFactored>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_adamw_factored);
}

}  // namespace outboard::cpu
#endif
