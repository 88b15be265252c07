// AdamW: Adam with decoupled weight decay (Loshchilov, Hutter: Decoupled Weight Decay
// Regularization, ICLR 2019).
//
//   g  = gradient * gradient_scale                    p1 = p * (1 - lr * weight_decay)
//   m' = m + (1 - beta1) * (g - m)                    v' = beta2 * v + (1 - beta2) * g^2
//   z  = amsgrad ? (x' = max(x, v')) : v'             (Reddi, Kale, Kumar: On the Convergence of
//   Adam, ICLR 2018) p' = p1 - (lr / (1 - beta1^t)) * m' / (sqrt(z) / sqrt(1 - beta2^t) + eps)
//
// Rounding and the order of operations are those of adam_update in adam_moments.h.
#ifndef OUTBOARD_RULES_ADAMW_H_
#define OUTBOARD_RULES_ADAMW_H_

#include "outboard/rules/adam_moments.h"

namespace outboard::rules {

/// Adam with weight decay applied to the weight itself, as torch.optim.AdamW.
struct AdamW {
  static constexpr std::string_view kName = "AdamW";
  static constexpr std::array kHyperParameters = adam_hyper_parameters(/*weight_decay=*/1e-2);
  static constexpr std::array kStates = kAdamStates;
  template <class T>
  using Scalars = AdamScalars<T>;

  /// Every combination of values inside the ranges is valid.
  static const char* check(std::span<const double>) { return nullptr; }

  template <class T>
  static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t step,
                                        double gradient_scale) {
    return adam_scalars<T>(hyper, step, gradient_scale, /*is_decoupled=*/true);
  }

  static constexpr uint32_t kRoots = kAdamRoots;

  static constexpr uint32_t kUsualStates = kUsualAdamStates;
  static OUTBOARD_HD bool is_usual(const Scalars<float>& s) { return is_usual_adam(s); }
  template <class Arithmetic>
  static OUTBOARD_HD void update_usual(const Scalars<float>& s, float gradient, float& weight,
                                       float* state, float* roots, Arithmetic& arithmetic) {
    adam_update<true>(s, gradient, weight, state, roots, arithmetic);
  }

  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state, T* roots) {
    exact::Arithmetic arithmetic;
    adam_update<false>(s, gradient, weight, state, roots, arithmetic);
  }
  template <class T>
  static OUTBOARD_HD void update(const Scalars<T>& s, T gradient, T& weight, T* state) {
    T roots[3];
    update(s, gradient, weight, state, roots);
  }
};

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_ADAMW_H_
