// Lion: the sign of an interpolated momentum (Chen et al.: Symbolic Discovery of Optimization
// Algorithms, NeurIPS 2023).
//
//   g  = gradient * gradient_scale
//   c  = m + (1 - beta1) * (g - m)
//   p' = p * (1 - lr * weight_decay) - lr * sign(c)       sign(0) = 0, sign(NaN) = NaN
//   m' = m + (1 - beta2) * (g - m)
#ifndef OUTBOARD_RULES_LION_H_
#define OUTBOARD_RULES_LION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"

namespace outboard::rules {

/// Sign descent on one moment with decoupled weight decay.
struct Lion {
  enum Hyper : size_t { kLr, kBeta1, kBeta2, kWeightDecay, kMaximize };

  static constexpr double kMost = std::numeric_limits<double>::max();
  static constexpr std::string_view kName = "Lion";
  static constexpr std::array kHyperParameters{
      HyperParameter{"lr", 1e-4, 0, kMost}, HyperParameter{"betas.0", 0.9, 0, 1, /*is_open=*/true},
      HyperParameter{"betas.1", 0.99, 0, 1, /*is_open=*/true},
      HyperParameter{"weight_decay", 0, 0, kMost},
      HyperParameter{"maximize", 0, 0, 1, false, /*is_flag=*/true}};
  static constexpr std::array kStates{StateInfo{"exp_avg", /*is_signed=*/true}};

  /// What one step needs, constant over the step and the parameter group.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T decay;  ///< 1 - lr * weight_decay
    T one_minus_beta1;
    T one_minus_beta2;
    T lr;
  };

  /// Every combination of values inside the ranges is valid.
  static const char* check(std::span<const double>) { return nullptr; }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t,
                                        double gradient_scale) {
    return {
        .gradient_scale = static_cast<T>(hyper[kMaximize] != 0 ? -gradient_scale : gradient_scale),
        .decay = static_cast<T>(exact::sub(1.0, exact::mul(hyper[kLr], hyper[kWeightDecay]))),
        .one_minus_beta1 = static_cast<T>(exact::sub(1.0, hyper[kBeta1])),
        .one_minus_beta2 = static_cast<T>(exact::sub(1.0, hyper[kBeta2])),
        .lr = static_cast<T>(hyper[kLr])};
  }

  static constexpr uint32_t kUsualStates = 0b1;
  /// Moments that keep more than half of themselves.
  static OUTBOARD_HD bool is_usual(const Scalars<float>& s) {
    return !(s.one_minus_beta1 < 0.0f) && s.one_minus_beta1 < 0.5f && !(s.one_minus_beta2 < 0.0f) &&
           s.one_minus_beta2 < 0.5f;
  }

  template <class Arithmetic>
  static OUTBOARD_HD void update_usual(const Scalars<float>& s, float gradient, float& weight,
                                       float* state, float* /*roots*/, Arithmetic&) {
    lion_update<true>(s, gradient, weight, state);
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    lion_update<false>(s, gradient, weight, state);
  }

 private:
  template <bool kIsUsual, class T>
  static OUTBOARD_HD void lion_update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    const auto lerp = [](T average, T value, T by) {
      return kIsUsual ? exact::lerp_below_half(average, value, by)
                      : exact::lerp(average, value, by);
    };
    const T g = exact::mul(gradient, s.gradient_scale);
    const T c = lerp(state[0], g, s.one_minus_beta1);
    // c - c is +0 for either zero and NaN for NaN.
    const T sign = c > T(0) ? T(1) : c < T(0) ? T(-1) : exact::sub(c, c);
    weight = exact::sub(exact::mul(weight, s.decay), exact::mul(s.lr, sign));
    state[0] = exact::flush_subnormal(lerp(state[0], g, s.one_minus_beta2));
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_LION_H_
