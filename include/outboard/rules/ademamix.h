// AdEMAMix: Adam with a second, slower average of the gradient (Pagliardini, Ablin, Grangier: The
// AdEMAMix Optimizer: Better, Faster, Older, ICLR 2025).
//
//   g   = gradient * gradient_scale
//   m1' = m1 + (1 - beta1) * (g - m1)
//   m2' = m2 + (1 - beta3(t)) * (g - m2)
//   v'  = beta2 * v + (1 - beta2) * g^2
//   p'  = p * (1 - lr * weight_decay)
//         - lr * (m1' / (1 - beta1^t) + alpha(t) * m2') / (sqrt(v') / sqrt(1 - beta2^t) + eps)
//
// Warm-up over the first T steps (T = t_alpha, t_beta3; 0: none), tau = t / T:
//
//   alpha(t) = alpha * min(tau, 1)
//   beta3(t) = exp(1 / ((1 - tau) / ln(beta1) + tau / ln(beta3))), at most beta3; beta3 from T on
//
// so that the slow average's half-life grows linearly from that of beta1. m2 has no bias
// correction.
#ifndef OUTBOARD_RULES_ADEMAMIX_H_
#define OUTBOARD_RULES_ADEMAMIX_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"
#include "outboard/scalar_math.h"

namespace outboard::rules {

/// Adam whose direction mixes a fast and a slow average, with decoupled weight decay.
struct AdEMAMix {
  enum Hyper : size_t {
    kLr,
    kBeta1,
    kBeta2,
    kBeta3,
    kAlpha,
    kAlphaSteps,
    kBeta3Steps,
    kEps,
    kWeightDecay,
    kMaximize
  };

  static constexpr double kMost = std::numeric_limits<double>::max();
  static constexpr std::string_view kName = "AdEMAMix";
  static constexpr std::array kHyperParameters{
      HyperParameter{"lr", 1e-3, 0, kMost},
      HyperParameter{"betas.0", 0.9, 0, 1, /*is_open=*/true},
      HyperParameter{"betas.1", 0.999, 0, 1, /*is_open=*/true},
      HyperParameter{"betas.2", 0.9999, 0, 1, /*is_open=*/true},
      HyperParameter{"alpha", 5, 0, kMost},
      HyperParameter{"t_alpha", 0, 0, kMost},
      HyperParameter{"t_beta3", 0, 0, kMost},
      HyperParameter{"eps", 1e-8, 0, kMost},
      HyperParameter{"weight_decay", 1e-2, 0, kMost},
      HyperParameter{"maximize", 0, 0, 1, false, /*is_flag=*/true}};
  static constexpr std::array kStates{StateInfo{"exp_avg", /*is_signed=*/true},
                                      StateInfo{"exp_avg_sq", /*is_signed=*/false},
                                      StateInfo{"exp_avg_slow", /*is_signed=*/true}};

  /// What one step needs, constant over the step and the parameter group.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T decay;  ///< 1 - lr * weight_decay
    T one_minus_beta1;
    T beta2;
    T one_minus_beta2;
    T one_minus_beta3;     ///< of this step
    T inverse_correction;  ///< 1 / (1 - beta1^t)
    T alpha;               ///< of this step
    T root_correction;     ///< sqrt(1 - beta2^t)
    T epsilon;
    T lr;
  };

  /// Every combination of values inside the ranges is valid.
  static const char* check(std::span<const double>) { return nullptr; }

  /// The slow average's coefficient at step t. A beta of 0 is a half-life of 0: its 1 / ln is -0.
  static OUTBOARD_HD double beta3_at(std::span<const double> hyper, double t) {
    const double steps = hyper[kBeta3Steps];
    if (t >= steps) return hyper[kBeta3];
    const double tau = exact::div(t, steps);
    const double inverse = exact::add(exact::div(exact::sub(1.0, tau), exact::log(hyper[kBeta1])),
                                      exact::div(tau, exact::log(hyper[kBeta3])));
    const double beta3 = exact::exp(exact::div(1.0, inverse));
    return beta3 < hyper[kBeta3] ? beta3 : hyper[kBeta3];
  }

  /// The slow average's share at step t.
  static OUTBOARD_HD double alpha_at(std::span<const double> hyper, double t) {
    const double steps = hyper[kAlphaSteps];
    return t >= steps ? hyper[kAlpha] : exact::div(exact::mul(t, hyper[kAlpha]), steps);
  }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t step,
                                        double gradient_scale) {
    const double t = static_cast<double>(step);
    const double correction1 = exact::sub(1.0, exact::power(hyper[kBeta1], step));
    const double correction2 = exact::sub(1.0, exact::power(hyper[kBeta2], step));
    return {
        .gradient_scale = static_cast<T>(hyper[kMaximize] != 0 ? -gradient_scale : gradient_scale),
        .decay = static_cast<T>(exact::sub(1.0, exact::mul(hyper[kLr], hyper[kWeightDecay]))),
        .one_minus_beta1 = static_cast<T>(exact::sub(1.0, hyper[kBeta1])),
        .beta2 = static_cast<T>(hyper[kBeta2]),
        .one_minus_beta2 = static_cast<T>(exact::sub(1.0, hyper[kBeta2])),
        .one_minus_beta3 = static_cast<T>(exact::sub(1.0, beta3_at(hyper, t))),
        .inverse_correction = static_cast<T>(exact::div(1.0, correction1)),
        .alpha = static_cast<T>(alpha_at(hyper, t)),
        .root_correction = static_cast<T>(exact::sqrt(correction2)),
        .epsilon = static_cast<T>(hyper[kEps]),
        .lr = static_cast<T>(hyper[kLr])};
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    const T g = exact::mul(gradient, s.gradient_scale);
    const T fast = exact::lerp(state[0], g, s.one_minus_beta1);
    const T v = exact::ema_of_squares(state[1], g, s.beta2, s.one_minus_beta2);
    const T slow = exact::lerp(state[2], g, s.one_minus_beta3);
    const T mixed = exact::fma(s.alpha, slow, exact::mul(s.inverse_correction, fast));
    const T denominator = exact::add(exact::div(exact::sqrt(v), s.root_correction), s.epsilon);
    const T decayed = exact::mul(weight, s.decay);
    weight = exact::sub(decayed, exact::div(exact::mul(s.lr, mixed), denominator));
    state[0] = exact::flush_subnormal(fast);
    state[1] = exact::flush_subnormal(v);
    state[2] = exact::flush_subnormal(slow);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_ADEMAMIX_H_
