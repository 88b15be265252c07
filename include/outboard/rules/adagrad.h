// Adagrad: steps that shrink with the sum of squared gradients (Duchi, Hazan, Singer: Adaptive
// Subgradient Methods for Online Learning and Stochastic Optimization, JMLR 2011), as
// torch.optim.Adagrad.
//
//   g  = gradient * gradient_scale + weight_decay * p
//   s' = s + g^2                  before the first step s is initial_accumulator_value
//   p' = p - (lr / (1 + (t - 1) * lr_decay)) * g / (sqrt(s') + eps)
#ifndef OUTBOARD_RULES_ADAGRAD_H_
#define OUTBOARD_RULES_ADAGRAD_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"

namespace outboard::rules {

/// Gradient descent whose learning rate per element falls with what the gradients have summed to.
struct Adagrad {
  enum Hyper : size_t { kLr, kLrDecay, kWeightDecay, kInitialSum, kEps, kMaximize };

  static constexpr double kMost = std::numeric_limits<double>::max();
  static constexpr std::string_view kName = "Adagrad";
  static constexpr std::array kHyperParameters{
      HyperParameter{"lr", 1e-2, 0, kMost},
      HyperParameter{"lr_decay", 0, 0, kMost},
      HyperParameter{"weight_decay", 0, 0, kMost},
      HyperParameter{"initial_accumulator_value", 0, 0, kMost},
      HyperParameter{"eps", 1e-10, 0, kMost},
      HyperParameter{"maximize", 0, 0, 1, false, /*is_flag=*/true}};
  static constexpr std::array kStates{StateInfo{"sum", /*is_signed=*/false}};

  /// What one step needs, constant over the step and the parameter group. State memory starts as
  /// zeros, so the first step brings its sum along.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T l2;
    T learning_rate;  ///< lr / (1 + (t - 1) * lr_decay)
    T epsilon;
    T initial_sum;
    int32_t is_first;  ///< 1: the sum so far is initial_sum, whatever the state holds
  };

  /// Every combination of values inside the ranges is valid.
  static const char* check(std::span<const double>) { return nullptr; }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t step,
                                        double gradient_scale) {
    const double decay =
        exact::add(1.0, exact::mul(static_cast<double>(step - 1), hyper[kLrDecay]));
    return {
        .gradient_scale = static_cast<T>(hyper[kMaximize] != 0 ? -gradient_scale : gradient_scale),
        .l2 = static_cast<T>(hyper[kWeightDecay]),
        .learning_rate = static_cast<T>(exact::div(hyper[kLr], decay)),
        .epsilon = static_cast<T>(hyper[kEps]),
        .initial_sum = static_cast<T>(hyper[kInitialSum]),
        .is_first = step <= 1};
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    T g = exact::mul(gradient, s.gradient_scale);
    if (s.l2 != T(0)) g = exact::fma(s.l2, weight, g);
    const T sum = exact::fma(g, g, s.is_first != 0 ? s.initial_sum : state[0]);
    const T denominator = exact::add(exact::sqrt(sum), s.epsilon);
    weight = exact::sub(weight, exact::div(exact::mul(s.learning_rate, g), denominator));
    state[0] = exact::flush_subnormal(sum);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_ADAGRAD_H_
