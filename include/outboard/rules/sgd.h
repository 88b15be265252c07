// Stochastic gradient descent with momentum, as torch.optim.SGD (Polyak 1964; the Nesterov form of
// Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in deep
// learning, ICML 2013).
//
//   g = gradient * gradient_scale + weight_decay * p
//   momentum = 0:  s = g
//   otherwise:     b' = g on the first step, momentum * b + (1 - dampening) * g later
//                  s  = nesterov ? g + momentum * b' : b'
//   p' = p - lr * s
#ifndef OUTBOARD_RULES_SGD_H_
#define OUTBOARD_RULES_SGD_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"

namespace outboard::rules {

/// Gradient descent with optional momentum, dampening, Nesterov's look-ahead and L2 weight decay.
struct SGD {
  enum Hyper : size_t { kLr, kMomentum, kDampening, kWeightDecay, kNesterov, kMaximize };
  enum Mode : int32_t { kPlain, kFirstStep, kLaterStep };

  static constexpr double kMost = std::numeric_limits<double>::max();
  static constexpr std::string_view kName = "SGD";
  static constexpr std::array kHyperParameters{
      HyperParameter{"lr", 1e-3, 0, kMost},
      HyperParameter{"momentum", 0, 0, kMost},
      HyperParameter{"dampening", 0, -kMost, kMost},
      HyperParameter{"weight_decay", 0, 0, kMost},
      HyperParameter{"nesterov", 0, 0, 1, false, /*is_flag=*/true},
      HyperParameter{"maximize", 0, 0, 1, false, /*is_flag=*/true}};
  static constexpr std::array kStates{
      StateInfo{"momentum_buffer", /*is_signed=*/true, /*needed_by=*/kMomentum}};

  /// What one step needs, constant over the step and the parameter group.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T l2;
    T momentum;
    T one_minus_dampening;
    T minus_lr;
    int32_t mode;      ///< a Mode: the buffer starts as the first gradient, undampened
    int32_t nesterov;  ///< 1: look ahead
  };

  /// Nesterov's form is defined for positive momentum without dampening only.
  static const char* check(std::span<const double> hyper) {
    const bool is_defined = hyper[kMomentum] > 0 && hyper[kDampening] == 0;
    return hyper[kNesterov] != 0 && !is_defined
               ? "nesterov needs momentum > 0 and dampening = 0; change them or switch nesterov off"
               : nullptr;
  }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t step,
                                        double gradient_scale) {
    const Mode mode = hyper[kMomentum] == 0 ? kPlain : step <= 1 ? kFirstStep : kLaterStep;
    return {
        .gradient_scale = static_cast<T>(hyper[kMaximize] != 0 ? -gradient_scale : gradient_scale),
        .l2 = static_cast<T>(hyper[kWeightDecay]),
        .momentum = static_cast<T>(hyper[kMomentum]),
        .one_minus_dampening = static_cast<T>(exact::sub(1.0, hyper[kDampening])),
        .minus_lr = static_cast<T>(-hyper[kLr]),
        .mode = mode,
        .nesterov = hyper[kNesterov] != 0};
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    T g = exact::mul(gradient, s.gradient_scale);
    if (s.l2 != T(0)) g = exact::fma(s.l2, weight, g);
    T direction = g;
    if (s.mode != kPlain) {
      T buffer = g;
      if (s.mode == kLaterStep) {
        buffer = exact::fma(s.one_minus_dampening, g, exact::mul(s.momentum, state[0]));
      }
      direction = s.nesterov != 0 ? exact::fma(s.momentum, buffer, g) : buffer;
      state[0] = exact::flush_subnormal(buffer);
    }
    weight = exact::fma(s.minus_lr, direction, weight);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_SGD_H_
