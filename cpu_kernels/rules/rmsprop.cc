// The CPU kernel of RMSprop for every SIMD target.
#include "outboard/rules/rmsprop.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/rmsprop.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
template <bool kIsCentered, bool kHasMomentum>
void rmsprop_loop(const rules::RMSprop::Scalars<float>& s, const RuleTile& tile) {
  const auto [gradient, weight, state, elements] = tile;
  for (size_t i = 0; i < elements; i += hn::Lanes(FloatTag())) {
    const FloatVec p = load(weight + i);
    FloatVec g = hn::Mul(load(gradient + i), broadcast(s.gradient_scale));
    if (s.l2 != 0.0f) g = hn::MulAdd(broadcast(s.l2), p, g);
    const FloatVec v = ema_of_squares(load(state[0] + i), g, s.alpha, s.one_minus_alpha);
    FloatVec z = v;
    if constexpr (kIsCentered) {
      const FloatVec average = lerp(load(state[2] + i), g, s.one_minus_alpha);
      z = max(broadcast(0.0f), hn::NegMulAdd(average, average, v));
      store(flush_subnormal(average), state[2] + i);
    }
    const FloatVec denominator = hn::Add(hn::Sqrt(z), broadcast(s.epsilon));
    if constexpr (kHasMomentum) {
      const FloatVec step = hn::Div(g, denominator);
      const FloatVec buffer = hn::MulAdd(broadcast(s.momentum), load(state[1] + i), step);
      store(hn::MulAdd(broadcast(-s.lr), buffer, p), weight + i);
      store(flush_subnormal(buffer), state[1] + i);
    } else {
      const FloatVec step = hn::Div(hn::Mul(broadcast(s.lr), g), denominator);
      store(hn::Sub(p, step), weight + i);
    }
    store(flush_subnormal(v), state[0] + i);
  }
}
#endif  // HWY_NATIVE_FMA

void run_rmsprop(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<rules::RMSprop::Scalars<float>>();
  const bool has_momentum = s.momentum != 0.0f;
  if (s.centered != 0) {
    has_momentum ? rmsprop_loop<true, true>(s, tile) : rmsprop_loop<true, false>(s, tile);
  } else {
    has_momentum ? rmsprop_loop<false, true>(s, tile) : rmsprop_loop<false, false>(s, tile);
  }
#else
  run_scalar_rule<rules::RMSprop>(scalars, tile);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_rmsprop);

template <>
RuleKernel resolve_kernel<rules::RMSprop>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_rmsprop);
}

}  // namespace outboard::cpu
#endif
