// The arithmetic that Adam and AdamW share: both moments, the optional maximum, and the step. The
// two rules differ only in where weight decay enters, which is a matter of two scalars. The rules
// themselves are in adam.h and adamw.h.
#ifndef OUTBOARD_RULES_ADAM_MOMENTS_H_
#define OUTBOARD_RULES_ADAM_MOMENTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"
#include "outboard/scalar_math.h"

namespace outboard::rules {

/// What one step of Adam or AdamW needs, constant over the step and the parameter group.
template <class T>
struct AdamScalars {
  T gradient_scale;
  T l2;     ///< Adam's weight decay, added to the gradient; 0 for AdamW
  T decay;  ///< AdamW's factor 1 - lr * weight_decay; 1 for Adam
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T root_correction;          ///< sqrt(1 - beta2^t)
  T inverse_root_correction;  ///< 1 / root_correction, for exact::div_by_constant
  T epsilon;
  T step_size;      ///< lr / (1 - beta1^t)
  int32_t amsgrad;  ///< 1: keep the maximum of the second moment in state 2
};

/// Indices into the hyper-parameters of both rules.
enum AdamHyper : size_t { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kAmsgrad, kMaximize };

/// Hyper-parameters of both rules in torch's order; only the default weight decay differs.
[[nodiscard]] constexpr std::array<HyperParameter, 7> adam_hyper_parameters(double weight_decay) {
  constexpr double kMost = std::numeric_limits<double>::max();
  return {{{"lr", 1e-3, 0, kMost},
           {"betas.0", 0.9, 0, 1, /*is_open=*/true},
           {"betas.1", 0.999, 0, 1, /*is_open=*/true},
           {"eps", 1e-8, 0, kMost},
           {"weight_decay", weight_decay, 0, kMost},
           {"amsgrad", 0, 0, 1, false, /*is_flag=*/true},
           {"maximize", 0, 0, 1, false, /*is_flag=*/true}}};
}

/// States of both rules in torch's order.
inline constexpr std::array<StateInfo, 3> kAdamStates{{{"exp_avg", /*is_signed=*/true},
                                                       {"exp_avg_sq", /*is_signed=*/false},
                                                       {"max_exp_avg_sq", false, kAmsgrad}}};

/// Scalars of step `step` (from 1), formed in fp64 and rounded once to T. fp32 would lose 2e-5 of 1
/// - beta2^t.
template <class T>
[[nodiscard]] OUTBOARD_HD AdamScalars<T> adam_scalars(std::span<const double> hyper, int64_t step,
                                                      double gradient_scale, bool is_decoupled) {
  const double correction1 = exact::sub(1.0, exact::power(hyper[kBeta1], step));
  const double correction2 = exact::sub(1.0, exact::power(hyper[kBeta2], step));
  const T root_correction = static_cast<T>(exact::sqrt(correction2));
  const double decay =
      is_decoupled ? exact::sub(1.0, exact::mul(hyper[kLr], hyper[kWeightDecay])) : 1.0;
  return {
      .gradient_scale = static_cast<T>(hyper[kMaximize] != 0 ? -gradient_scale : gradient_scale),
      .l2 = static_cast<T>(is_decoupled ? 0.0 : hyper[kWeightDecay]),
      .decay = static_cast<T>(decay),
      .one_minus_beta1 = static_cast<T>(exact::sub(1.0, hyper[kBeta1])),
      .beta2 = static_cast<T>(hyper[kBeta2]),
      .one_minus_beta2 = static_cast<T>(exact::sub(1.0, hyper[kBeta2])),
      .root_correction = root_correction,
      .inverse_root_correction = exact::div(T(1), root_correction),
      .epsilon = static_cast<T>(hyper[kEps]),
      .step_size = static_cast<T>(exact::div(hyper[kLr], correction1)),
      .amsgrad = hyper[kAmsgrad] != 0};
}

/// No L2 decay, no amsgrad, a first moment that keeps more than half of itself, and scalars with
/// which a denominator lies in [2^-60, 2^45] for a root of up to 2^30, and with which a numerator
/// of 2^-80 belongs to a moment that is not subnormal.
OUTBOARD_HD bool is_usual_adam(const AdamScalars<float>& s) {
  const bool is_short = s.one_minus_beta1 >= 0.0f && s.one_minus_beta1 < 0.5f;
  const bool is_in_range = s.epsilon >= 0x1p-60f && s.epsilon <= 0x1p20f &&
                           s.root_correction >= 0x1p-10f && s.step_size <= 0x1p20f;
  return is_short && is_in_range && s.l2 == 0.0f && s.amsgrad == 0;
}

/// States that is_usual_adam() leaves: m and v.
inline constexpr uint32_t kUsualAdamStates = 0b011;

/// States whose roots adam_update forms: v and x.
inline constexpr uint32_t kAdamRoots = 0b110;

/// One element of Adam or AdamW. `state` is m, v and, with amsgrad, x. The stored states are
/// flushed; the weight is updated from the unflushed ones. `roots` receives the roots of the stored
/// v and x. kIsUsual: is_usual_adam holds.
template <bool kIsUsual, class T, class Arithmetic>
OUTBOARD_HD void adam_update(const AdamScalars<T>& s, T gradient, T& weight, T* state, T* roots,
                             Arithmetic& arithmetic) {
  const bool has_maximum = !kIsUsual && s.amsgrad != 0;
  T g = exact::mul(gradient, s.gradient_scale);
  if (!kIsUsual && s.l2 != T(0)) g = exact::fma(s.l2, weight, g);
  const T m = kIsUsual ? exact::lerp_below_half(state[0], g, s.one_minus_beta1)
                       : exact::lerp(state[0], g, s.one_minus_beta1);
  const T v = exact::ema_of_squares(state[1], g, s.beta2, s.one_minus_beta2);
  T z = v;
  if (has_maximum) {
    z = exact::max(state[2], v);
    state[2] = exact::flush_subnormal(z);
  }
  const T root = arithmetic.sqrt(z);
  const T corrected =
      arithmetic.div_by_constant(root, s.root_correction, s.inverse_root_correction);
  const T denominator = exact::add(corrected, s.epsilon);
  const T decayed = exact::mul(weight, s.decay);
  weight = exact::sub(decayed, arithmetic.div(exact::mul(s.step_size, m), denominator));
  state[0] = arithmetic.flush_subnormal(m);
  state[1] = arithmetic.flush_subnormal(v);
  roots[1] = arithmetic.flush_root(has_maximum ? arithmetic.sqrt(v) : root, v);
  roots[2] = arithmetic.flush_root(root, z);
}

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_ADAM_MOMENTS_H_
