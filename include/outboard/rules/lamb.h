// LAMB: AdamW whose step is scaled, per parameter, to the weight's norm (You et al.: Large Batch
// Optimization for Deep Learning: Training BERT in 76 minutes, ICLR 2020).
//
//   g  = gradient * gradient_scale
//   m' = m + (1 - beta1) * (g - m)                    v' = beta2 * v + (1 - beta2) * g^2
//   u  = (m' / (1 - beta1^t)) / (sqrt(v') / sqrt(1 - beta2^t) + eps)
//   max_unorm = 0:  r = u + weight_decay * p          p' = p - lr * min(|p| / |r|, 10) * r
//   max_unorm > 0:  p' = p * (1 - lr * weight_decay) - lr * min(1, max_unorm * |p| / |u|) * u
//
// |.| is the norm over the whole parameter. The second form is what bitsandbytes calls LAMB: AdamW
// with a clipped update. Both ratios are 1 where a norm is 0.
#ifndef OUTBOARD_RULES_LAMB_H_
#define OUTBOARD_RULES_LAMB_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "outboard/hd.h"
#include "outboard/rule.h"
#include "outboard/rules/trust_ratio.h"
#include "outboard/scalar_math.h"

namespace outboard::rules {

/// Layer-wise adaptive moments, true to the paper, or the clip of bitsandbytes with `max_unorm`.
struct LAMB {
  enum Hyper : size_t { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kMaxUnorm, kMaximize };

  static constexpr double kMost = std::numeric_limits<double>::max();
  /// Far from the start norms differ by orders of magnitude; the authors' code clamps here too.
  static constexpr double kMostTrust = 10;
  static constexpr std::string_view kName = "LAMB";
  static constexpr std::array kHyperParameters{
      HyperParameter{"lr", 1e-3, 0, kMost},
      HyperParameter{"betas.0", 0.9, 0, 1, /*is_open=*/true},
      HyperParameter{"betas.1", 0.999, 0, 1, /*is_open=*/true},
      HyperParameter{"eps", 1e-8, 0, kMost},
      HyperParameter{"weight_decay", 0, 0, kMost},
      HyperParameter{"max_unorm", 0, 0, kMost},
      HyperParameter{"maximize", 0, 0, 1, false, /*is_flag=*/true}};
  static constexpr std::array kStates{StateInfo{"exp_avg", /*is_signed=*/true},
                                      StateInfo{"exp_avg_sq", /*is_signed=*/false}};

  /// What one step needs, constant over the step and the parameter; before with_norms() the ratio
  /// is 1.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T l2;     ///< weight decay inside the measured update; 0 when clipping
    T decay;  ///< 1 - lr * weight_decay when clipping, else 1
    T one_minus_beta1;
    T beta2;
    T one_minus_beta2;
    T inverse_correction;  ///< 1 / (1 - beta1^t)
    T root_correction;     ///< sqrt(1 - beta2^t)
    T epsilon;
    T minus_step;  ///< -lr * ratio
    double lr;
    double max_unorm;  ///< 0: the trust ratio of the paper
  };

  /// Every combination of values inside the ranges is valid.
  static const char* check(std::span<const double>) { return nullptr; }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t step,
                                        double gradient_scale) {
    const double correction1 = exact::sub(1.0, exact::power(hyper[kBeta1], step));
    const double correction2 = exact::sub(1.0, exact::power(hyper[kBeta2], step));
    const double decay = exact::sub(1.0, exact::mul(hyper[kLr], hyper[kWeightDecay]));
    const bool is_clip = hyper[kMaxUnorm] > 0;
    return {
        .gradient_scale = static_cast<T>(hyper[kMaximize] != 0 ? -gradient_scale : gradient_scale),
        .l2 = static_cast<T>(is_clip ? 0.0 : hyper[kWeightDecay]),
        .decay = static_cast<T>(is_clip ? decay : 1.0),
        .one_minus_beta1 = static_cast<T>(exact::sub(1.0, hyper[kBeta1])),
        .beta2 = static_cast<T>(hyper[kBeta2]),
        .one_minus_beta2 = static_cast<T>(exact::sub(1.0, hyper[kBeta2])),
        .inverse_correction = static_cast<T>(exact::div(1.0, correction1)),
        .root_correction = static_cast<T>(exact::sqrt(correction2)),
        .epsilon = static_cast<T>(hyper[kEps]),
        .minus_step = static_cast<T>(-hyper[kLr]),
        .lr = hyper[kLr],
        .max_unorm = hyper[kMaxUnorm]};
  }

  /// The same with the ratio that these sums of squares, of the weight and of measured(), give. A
  /// ratio that is not a number (both norms overflow) counts as 1.
  template <class T>
  static OUTBOARD_HD Scalars<T> with_norms(Scalars<T> s, double weight_squares,
                                           double update_squares) {
    const double weight_norm = exact::sqrt(weight_squares);
    const double update_norm = exact::sqrt(update_squares);
    double ratio = 1;
    if (s.max_unorm > 0) {
      ratio = clip_ratio(s.max_unorm, weight_norm, update_norm);
    } else if (weight_norm > 0 && update_norm > 0) {
      const double trust = exact::div(weight_norm, update_norm);
      ratio = trust < kMostTrust ? trust : trust >= kMostTrust ? kMostTrust : 1.0;
    }
    s.minus_step = static_cast<T>(exact::mul(-s.lr, ratio));
    return s;
  }

  /// New moments, not yet flushed, and the update's direction.
  template <class T>
  struct Moved {
    T m;
    T v;
    T direction;
  };

  template <class T>
  static OUTBOARD_HD Moved<T> move(const Scalars<T>& s, T gradient, T weight, const T* state) {
    const T g = exact::mul(gradient, s.gradient_scale);
    const T m = exact::lerp(state[0], g, s.one_minus_beta1);
    const T v = exact::ema_of_squares(state[1], g, s.beta2, s.one_minus_beta2);
    const T denominator = exact::add(exact::div(exact::sqrt(v), s.root_correction), s.epsilon);
    T direction = exact::div(exact::mul(s.inverse_correction, m), denominator);
    if (s.l2 != T(0)) direction = exact::fma(s.l2, weight, direction);
    return {m, v, direction};
  }

  /// The value whose norm with_norms() takes beside the weight's.
  template <class T>
  static OUTBOARD_HD T measured(const Scalars<T>& s, T gradient, T weight, const T* state) {
    return move(s, gradient, weight, state).direction;
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    const Moved<T> moved = move(s, gradient, weight, state);
    weight = exact::fma(s.minus_step, moved.direction, exact::mul(weight, s.decay));
    state[0] = exact::flush_subnormal(moved.m);
    state[1] = exact::flush_subnormal(moved.v);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_LAMB_H_
