// AdamW whose second moment is kept as row and column means (the factored second moment of Li,
// Chen, Zhu: Memory Efficient Optimizers with 4-bit States, NeurIPS 2023). The parameter is a
// matrix, i its row and j its column:
//
//   g  = gradient * gradient_scale                    p1 = p * (1 - lr * weight_decay)
//   m' = m + (1 - beta1) * (g - m)
//   R' = R + (1 - beta2) * (mean_j g^2 - R)           C' = C + (1 - beta2) * (mean_i g^2 - C)
//   v  = (R' / mean R') * C', or 0 where mean R' = 0
//   p' = p1 - (lr / (1 - beta1^t)) * m' / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// R' and C' are formed by a first pass (factors.h); the step is AdamW's, operation by operation.
#ifndef OUTBOARD_RULES_ADAMW_FACTORED_H_
#define OUTBOARD_RULES_ADAMW_FACTORED_H_

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "outboard/hd.h"
#include "outboard/rule.h"
#include "outboard/rules/adam_moments.h"

namespace outboard::rules {

/// AdamW for matrices, with a value for each row and column in the place of a second moment for
/// each element.
struct AdamWFactored {
  static constexpr std::string_view kName = "AdamWFactored";
  static constexpr std::array kHyperParameters = adam_hyper_parameters(/*weight_decay=*/1e-2);
  static constexpr std::array kStates{
      StateInfo{"exp_avg", /*is_signed=*/true},
      StateInfo{"exp_avg_sq_row", /*is_signed=*/false, -1, StateShape::kRows},
      StateInfo{"exp_avg_sq_col", /*is_signed=*/false, -1, StateShape::kColumns}};

  /// What one step needs, constant over the step and the parameter; before with_row_mean() the mean
  /// is 1.
  template <class T>
  struct Scalars {
    T gradient_scale;
    T decay;  ///< 1 - lr * weight_decay
    T one_minus_beta1;
    T one_minus_beta2;
    T root_correction;          ///< sqrt(1 - beta2^t)
    T inverse_root_correction;  ///< 1 / root_correction, for exact::div_by_constant
    T epsilon;
    T step_size;  ///< lr / (1 - beta1^t)
    double row_mean;
  };

  /// amsgrad keeps a maximum for each element, which is what this rule saves.
  static const char* check(std::span<const double> hyper) {
    return hyper[kAmsgrad] == 0 ? nullptr
                                : "amsgrad keeps a maximum for each element and cannot go with a "
                                  "factored second moment; switch one of them off";
  }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t step,
                                        double gradient_scale) {
    const AdamScalars<T> s = adam_scalars<T>(hyper, step, gradient_scale, /*is_decoupled=*/true);
    return {.gradient_scale = s.gradient_scale,
            .decay = s.decay,
            .one_minus_beta1 = s.one_minus_beta1,
            .one_minus_beta2 = s.one_minus_beta2,
            .root_correction = s.root_correction,
            .inverse_root_correction = s.inverse_root_correction,
            .epsilon = s.epsilon,
            .step_size = s.step_size,
            .row_mean = 1};
  }

  static OUTBOARD_HD FactorScalars factor_scalars(const Scalars<float>& s) {
    return {s.gradient_scale, s.one_minus_beta2, s.row_mean};
  }
  template <class T>
  static OUTBOARD_HD Scalars<T> with_row_mean(Scalars<T> s, double row_mean) {
    s.row_mean = row_mean;
    return s;
  }

  /// `state` is m and the element's v, which is read only.
  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    const T g = exact::mul(gradient, s.gradient_scale);
    const T m = exact::lerp(state[0], g, s.one_minus_beta1);
    const T corrected =
        exact::div_by_constant(exact::sqrt(state[1]), s.root_correction, s.inverse_root_correction);
    const T denominator = exact::add(corrected, s.epsilon);
    const T decayed = exact::mul(weight, s.decay);
    weight = exact::sub(decayed, exact::div(exact::mul(s.step_size, m), denominator));
    state[0] = exact::flush_subnormal(m);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_ADAMW_FACTORED_H_
