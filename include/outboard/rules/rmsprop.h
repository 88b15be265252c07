// RMSprop: the gradient over the root of its mean square (Tieleman, Hinton: Lecture 6.5, COURSERA
// Neural Networks for Machine Learning, 2012; centred: Graves: Generating Sequences With Recurrent
// Neural Networks, 2013), as torch.optim.RMSprop.
//
//   g  = gradient * gradient_scale + weight_decay * p
//   v' = alpha * v + (1 - alpha) * g^2
//   z  = centered ? max(v' - a'^2, 0), a' = a + (1 - alpha) * (g - a) : v'
//   momentum = 0:  p' = p - lr * g / (sqrt(z) + eps)
//   otherwise:     b' = momentum * b + g / (sqrt(z) + eps),  p' = p - lr * b'
#ifndef OUTBOARD_RULES_RMSPROP_H_
#define OUTBOARD_RULES_RMSPROP_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"

namespace outboard::rules {

/// Normalised gradient descent with optional centring, momentum and L2 weight decay.
struct RMSprop {
  enum Hyper : size_t { kLr, kAlpha, kEps, kWeightDecay, kMomentum, kCentered, kMaximize };

  static constexpr double kMost = std::numeric_limits<double>::max();
  static constexpr std::string_view kName = "RMSprop";
  static constexpr std::array kHyperParameters{
      HyperParameter{"lr", 1e-2, 0, kMost},
      HyperParameter{"alpha", 0.99, 0, 1},
      HyperParameter{"eps", 1e-8, 0, kMost},
      HyperParameter{"weight_decay", 0, 0, kMost},
      HyperParameter{"momentum", 0, 0, kMost},
      HyperParameter{"centered", 0, 0, 1, false, /*is_flag=*/true},
      HyperParameter{"maximize", 0, 0, 1, false, /*is_flag=*/true}};
  static constexpr std::array kStates{
      StateInfo{"square_avg", /*is_signed=*/false},
      StateInfo{"momentum_buffer", /*is_signed=*/true, /*needed_by=*/kMomentum},
      StateInfo{"grad_avg", /*is_signed=*/true, /*needed_by=*/kCentered}};

  /// What one step needs, constant over the step and the parameter group.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T l2;
    T alpha;
    T one_minus_alpha;
    T epsilon;
    T lr;
    T momentum;
    int32_t centered;  ///< 1: subtract the square of the mean, which is state 2
  };

  /// Every combination of values inside the ranges is valid.
  static const char* check(std::span<const double>) { return nullptr; }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t,
                                        double gradient_scale) {
    return {
        .gradient_scale = static_cast<T>(hyper[kMaximize] != 0 ? -gradient_scale : gradient_scale),
        .l2 = static_cast<T>(hyper[kWeightDecay]),
        .alpha = static_cast<T>(hyper[kAlpha]),
        .one_minus_alpha = static_cast<T>(exact::sub(1.0, hyper[kAlpha])),
        .epsilon = static_cast<T>(hyper[kEps]),
        .lr = static_cast<T>(hyper[kLr]),
        .momentum = static_cast<T>(hyper[kMomentum]),
        .centered = hyper[kCentered] != 0};
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    T g = exact::mul(gradient, s.gradient_scale);
    if (s.l2 != T(0)) g = exact::fma(s.l2, weight, g);
    const T v = exact::ema_of_squares(state[0], g, s.alpha, s.one_minus_alpha);
    T z = v;
    if (s.centered != 0) {
      const T average = exact::lerp(state[2], g, s.one_minus_alpha);
      // Rounding can leave less than nothing of the variance, whose root would be NaN.
      z = exact::max(T(0), exact::fma(-average, average, v));
      state[2] = exact::flush_subnormal(average);
    }
    const T denominator = exact::add(exact::sqrt(z), s.epsilon);
    if (s.momentum != T(0)) {
      const T buffer = exact::fma(s.momentum, state[1], exact::div(g, denominator));
      weight = exact::fma(-s.lr, buffer, weight);
      state[1] = exact::flush_subnormal(buffer);
    } else {
      weight = exact::sub(weight, exact::div(exact::mul(s.lr, g), denominator));
    }
    state[0] = exact::flush_subnormal(v);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_RMSPROP_H_
