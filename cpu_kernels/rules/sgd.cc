// The CPU kernel of SGD for every SIMD target.
#include "outboard/rules/sgd.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/sgd.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
template <bool kHasL2, rules::SGD::Mode kMode>
void sgd_loop(const rules::SGD::Scalars<float>& s, const RuleTile& tile) {
  const auto [gradient, weight, state, elements] = tile;
  for (size_t i = 0; i < elements; i += hn::Lanes(FloatTag())) {
    const FloatVec p = load(weight + i);
    FloatVec g = hn::Mul(load(gradient + i), broadcast(s.gradient_scale));
    if constexpr (kHasL2) g = hn::MulAdd(broadcast(s.l2), p, g);
    FloatVec direction = g;
    if constexpr (kMode != rules::SGD::kPlain) {
      FloatVec buffer = g;
      if constexpr (kMode == rules::SGD::kLaterStep) {
        const FloatVec kept = hn::Mul(broadcast(s.momentum), load(state[0] + i));
        buffer = hn::MulAdd(broadcast(s.one_minus_dampening), g, kept);
      }
      direction = s.nesterov != 0 ? hn::MulAdd(broadcast(s.momentum), buffer, g) : buffer;
      store(flush_subnormal(buffer), state[0] + i);
    }
    store(hn::MulAdd(broadcast(s.minus_lr), direction, p), weight + i);
  }
}

template <bool kHasL2>
void sgd_mode(const rules::SGD::Scalars<float>& s, const RuleTile& tile) {
  switch (s.mode) {
    case rules::SGD::kPlain:
      return sgd_loop<kHasL2, rules::SGD::kPlain>(s, tile);
    case rules::SGD::kFirstStep:
      return sgd_loop<kHasL2, rules::SGD::kFirstStep>(s, tile);
    default:
      return sgd_loop<kHasL2, rules::SGD::kLaterStep>(s, tile);
  }
}
#endif  // HWY_NATIVE_FMA

void run_sgd(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<rules::SGD::Scalars<float>>();
  s.l2 != 0.0f ? sgd_mode<true>(s, tile) : sgd_mode<false>(s, tile);
#else
  run_scalar_rule<rules::SGD>(scalars, tile);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_sgd);

template <>
RuleKernel resolve_kernel<rules::SGD>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_sgd);
}

}  // namespace outboard::cpu
#endif
