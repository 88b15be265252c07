// LARS: SGD with momentum whose gradient is scaled, per parameter, to the weight's norm (You,
// Gitman, Ginsburg: Large Batch Training of Convolutional Networks, 2017).
//
//   g = gradient * gradient_scale
//   max_unorm = 0:  s = (g + weight_decay * p) * trust
//                   trust = trust_coefficient * |p| / (|g| + weight_decay * |p| + eps)
//   max_unorm > 0:  s = g + weight_decay * p
//   b = s on the first step, momentum * b + (1 - dampening) * s later
//   d = momentum = 0 ? s : nesterov ? s + momentum * b : b
//   p' = p - lr * ratio * d,  ratio = max_unorm > 0 ? min(1, max_unorm * |p| / |d|) : 1
//
// |.| is the norm over the whole parameter. The second form is what bitsandbytes calls LARS: SGD
// with a clipped update. Trust and ratio are 1 where a norm is 0.
#ifndef OUTBOARD_RULES_LARS_H_
#define OUTBOARD_RULES_LARS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"
#include "outboard/rules/trust_ratio.h"

namespace outboard::rules {

/// Layer-wise adaptive rates, true to the paper, or the clip of bitsandbytes with `max_unorm`.
struct LARS {
  enum Hyper : size_t {
    kLr,
    kMomentum,
    kDampening,
    kWeightDecay,
    kNesterov,
    kEps,
    kMaxUnorm,
    kTrustCoefficient,
    kMaximize
  };
  enum Mode : int32_t { kPlain, kFirstStep, kLaterStep };

  static constexpr double kMost = std::numeric_limits<double>::max();
  static constexpr std::string_view kName = "LARS";
  static constexpr std::array kHyperParameters{
      HyperParameter{"lr", 1e-3, 0, kMost},
      HyperParameter{"momentum", 0.9, 0, kMost},
      HyperParameter{"dampening", 0, -kMost, kMost},
      HyperParameter{"weight_decay", 0, 0, kMost},
      HyperParameter{"nesterov", 0, 0, 1, false, /*is_flag=*/true},
      HyperParameter{"eps", 1e-8, 0, kMost},
      HyperParameter{"max_unorm", 0, 0, kMost},
      HyperParameter{"trust_coefficient", 1e-3, 0, kMost},
      HyperParameter{"maximize", 0, 0, 1, false, /*is_flag=*/true}};
  static constexpr std::array kStates{
      StateInfo{"momentum_buffer", /*is_signed=*/true, /*needed_by=*/kMomentum}};

  /// What one step needs, constant over the step and the parameter; before with_norms() trust and
  /// ratio are 1.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T l2;
    T trust;
    T momentum;
    T one_minus_dampening;
    T minus_step;      ///< -lr * ratio
    int32_t mode;      ///< a Mode: the buffer starts as the first gradient, undampened
    int32_t nesterov;  ///< 1: look ahead
    double lr;
    double weight_decay;
    double epsilon;
    double max_unorm;  ///< 0: the trust of the paper
    double trust_coefficient;
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
        .trust = T(1),
        .momentum = static_cast<T>(hyper[kMomentum]),
        .one_minus_dampening = static_cast<T>(exact::sub(1.0, hyper[kDampening])),
        .minus_step = static_cast<T>(-hyper[kLr]),
        .mode = mode,
        .nesterov = hyper[kNesterov] != 0,
        .lr = hyper[kLr],
        .weight_decay = hyper[kWeightDecay],
        .epsilon = hyper[kEps],
        .max_unorm = hyper[kMaxUnorm],
        .trust_coefficient = hyper[kTrustCoefficient]};
  }

  /// The same with the trust or ratio that these sums of squares, of the weight and of measured(),
  /// give. A trust that is not finite (a norm overflows) counts as 1.
  template <class T>
  static OUTBOARD_HD Scalars<T> with_norms(Scalars<T> s, double weight_squares,
                                           double update_squares) {
    const double weight_norm = exact::sqrt(weight_squares);
    const double update_norm = exact::sqrt(update_squares);
    if (s.max_unorm > 0) {
      const double ratio = clip_ratio(s.max_unorm, weight_norm, update_norm);
      s.minus_step = static_cast<T>(exact::mul(-s.lr, ratio));
    } else if (weight_norm > 0 && update_norm > 0) {
      const double decayed = exact::add(update_norm, exact::mul(s.weight_decay, weight_norm));
      const double trust =
          exact::div(exact::mul(s.trust_coefficient, weight_norm), exact::add(decayed, s.epsilon));
      s.trust = trust <= kMost ? static_cast<T>(trust) : T(1);
    }
    return s;
  }

  /// The new momentum buffer, not yet flushed, and the update's direction.
  template <class T>
  struct Moved {
    T buffer;
    T direction;
  };

  template <class T>
  static OUTBOARD_HD Moved<T> move(const Scalars<T>& s, T gradient, T weight, const T* state) {
    T g = exact::mul(gradient, s.gradient_scale);
    if (s.l2 != T(0)) g = exact::fma(s.l2, weight, g);
    g = exact::mul(g, s.trust);
    if (s.mode == kPlain) return {g, g};
    const T buffer = s.mode == kFirstStep
                         ? g
                         : exact::fma(s.one_minus_dampening, g, exact::mul(s.momentum, state[0]));
    return {buffer, s.nesterov != 0 ? exact::fma(s.momentum, buffer, g) : buffer};
  }

  /// The value whose norm with_norms() takes beside the weight's: the gradient, or the clipped
  /// update.
  template <class T>
  static OUTBOARD_HD T measured(const Scalars<T>& s, T gradient, T weight, const T* state) {
    if (!(s.max_unorm > 0)) return exact::mul(gradient, s.gradient_scale);
    return move(s, gradient, weight, state).direction;
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    const Moved<T> moved = move(s, gradient, weight, state);
    weight = exact::fma(s.minus_step, moved.direction, weight);
    if (s.mode != kPlain) state[0] = exact::flush_subnormal(moved.buffer);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_LARS_H_
