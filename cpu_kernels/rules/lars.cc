// The CPU kernels of LARS for every SIMD target: the update, and the values that are measured
// first.
#include "outboard/rules/lars.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/lars.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/exact-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA
using LarsScalars = rules::LARS::Scalars<float>;

struct LarsMoved {
  FloatVec buffer;
  FloatVec direction;
};

/// As LARS::move, of the elements from `i`.
template <rules::LARS::Mode kMode>
HWY_INLINE LarsMoved lars_move(const LarsScalars& s, const RuleTile& tile, size_t i, FloatVec p) {
  FloatVec g = hn::Mul(load(tile.gradient + i), broadcast(s.gradient_scale));
  if (s.l2 != 0.0f) g = hn::MulAdd(broadcast(s.l2), p, g);
  g = hn::Mul(g, broadcast(s.trust));
  if constexpr (kMode == rules::LARS::kPlain) return {g, g};
  FloatVec buffer = g;
  if constexpr (kMode == rules::LARS::kLaterStep) {
    const FloatVec kept = hn::Mul(broadcast(s.momentum), load(tile.state[0] + i));
    buffer = hn::MulAdd(broadcast(s.one_minus_dampening), g, kept);
  }
  return {buffer, s.nesterov != 0 ? hn::MulAdd(broadcast(s.momentum), buffer, g) : buffer};
}

/// The update of a tile; `values` is not used.
struct LarsUpdate {
  template <rules::LARS::Mode kMode>
  static void loop(const LarsScalars& s, const RuleTile& tile, float* /*values*/) {
    for (size_t i = 0; i < tile.elements; i += hn::Lanes(FloatTag())) {
      const FloatVec p = load(tile.weight + i);
      const LarsMoved moved = lars_move<kMode>(s, tile, i, p);
      store(hn::MulAdd(broadcast(s.minus_step), moved.direction, p), tile.weight + i);
      if constexpr (kMode != rules::LARS::kPlain) {
        store(flush_subnormal(moved.buffer), tile.state[0] + i);
      }
    }
  }
};

/// The direction of a tile, which clipping measures.
struct LarsDirection {
  template <rules::LARS::Mode kMode>
  static void loop(const LarsScalars& s, const RuleTile& tile, float* values) {
    for (size_t i = 0; i < tile.elements; i += hn::Lanes(FloatTag())) {
      store(lars_move<kMode>(s, tile, i, load(tile.weight + i)).direction, values + i);
    }
  }
};

template <class Pass>
void lars_pass(const LarsScalars& s, const RuleTile& tile, float* values) {
  switch (s.mode) {
    case rules::LARS::kPlain:
      return Pass::template loop<rules::LARS::kPlain>(s, tile, values);
    case rules::LARS::kFirstStep:
      return Pass::template loop<rules::LARS::kFirstStep>(s, tile, values);
    default:
      return Pass::template loop<rules::LARS::kLaterStep>(s, tile, values);
  }
}
#endif  // HWY_NATIVE_FMA

void run_lars(const RuleScalars& scalars, const RuleTile& tile) {
#if HWY_NATIVE_FMA
  lars_pass<LarsUpdate>(scalars.as<LarsScalars>(), tile, nullptr);
#else
  run_scalar_rule<rules::LARS>(scalars, tile);
#endif
}

void measure_lars(const RuleScalars& scalars, const RuleTile& tile, float* values) {
#if HWY_NATIVE_FMA
  const auto s = scalars.as<LarsScalars>();
  if (s.max_unorm > 0) return lars_pass<LarsDirection>(s, tile, values);
  for (size_t i = 0; i < tile.elements; i += hn::Lanes(FloatTag())) {
    store(hn::Mul(load(tile.gradient + i), broadcast(s.gradient_scale)), values + i);
  }
#else
  run_scalar_measure<rules::LARS>(scalars, tile, values);
#endif
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_lars);
HWY_EXPORT(measure_lars);

template <>
RuleKernel resolve_kernel<rules::LARS>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_lars);
}

template <>
MeasureKernel resolve_measure_kernel<rules::LARS>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(measure_lars);
}

}  // namespace outboard::cpu
#endif
