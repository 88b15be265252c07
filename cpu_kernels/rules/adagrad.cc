// The CPU kernel of Adagrad for every SIMD target.
#include "outboard/rules/adagrad.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/adagrad.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
template <bool kHasL2>
void adagrad_loop(const rules::Adagrad::Scalars<float>& s, const RuleTile& tile) {
  const auto [gradient, weight, state, elements] = tile;
  for (size_t i = 0; i < elements; i += hn::Lanes(FloatTag())) {
    const FloatVec p = load(weight + i);
    FloatVec g = hn::Mul(load(gradient + i), broadcast(s.gradient_scale));
    if constexpr (kHasL2) g = hn::MulAdd(broadcast(s.l2), p, g);
    const FloatVec before = s.is_first != 0 ? broadcast(s.initial_sum) : load(state[0] + i);
    const FloatVec sum = hn::MulAdd(g, g, before);
    const FloatVec denominator = hn::Add(hn::Sqrt(sum), broadcast(s.epsilon));
    const FloatVec step = hn::Div(hn::Mul(broadcast(s.learning_rate), g), denominator);
    store(hn::Sub(p, step), weight + i);
    store(flush_subnormal(sum), state[0] + i);
  }
}
#endif  // HWY_NATIVE_FMA

void run_adagrad(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<rules::Adagrad::Scalars<float>>();
  s.l2 != 0.0f ? adagrad_loop<true>(s, tile) : adagrad_loop<false>(s, tile);
#else
  run_scalar_rule<rules::Adagrad>(scalars, tile);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_adagrad);

template <>
RuleKernel resolve_kernel<rules::Adagrad>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_adagrad);
}

}  // namespace outboard::cpu
#endif
