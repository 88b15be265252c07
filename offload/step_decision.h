// What a step does with the global norm: skip, clip, unscale. Arithmetic on a handful of doubles;
// no memory, no time.
#ifndef OUTBOARD_OFFLOAD_STEP_DECISION_H_
#define OUTBOARD_OFFLOAD_STEP_DECISION_H_

#include <span>

namespace outboard {

/// What is known about all gradients of a step. `sum_of_squares` is of the gradients as stored
/// (before unscaling).
struct StepEvidence {
  double sum_of_squares = 0;
  double loss_scale = 1;
  bool found_inf = false;
};

/// Every gradient is multiplied by `gradient_scale`, or nothing happens.
struct StepDecision {
  bool is_taken = true;
  double norm = 0;
  double clip_factor = 1;
  double gradient_scale = 1;
};

/// `max_norm` 0: no clipping. The factor is min(1, max_norm / (norm + 1e-6)), as
/// torch.nn.utils.clip_grad_norm_ defines it, but never rounded to the gradient's type. Without
/// `skips_nonfinite` an infinite norm propagates as in torch.
[[nodiscard]] StepDecision decide_step(const StepEvidence& evidence, double max_norm,
                                       bool skips_nonfinite);

/// Adds fp32 segment sums in index order in fp64: the same bits however the segments were computed.
[[nodiscard]] double add_segments(std::span<const float> sums);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_STEP_DECISION_H_
