// Step decisions; see step_decision.h.
#include "offload/step_decision.h"

#include <cmath>

namespace outboard {

StepDecision decide_step(const StepEvidence& evidence, double max_norm, bool skips_nonfinite) {
  StepDecision decision;
  decision.norm = std::sqrt(evidence.sum_of_squares) / evidence.loss_scale;
  decision.is_taken = !evidence.found_inf && (!skips_nonfinite || std::isfinite(decision.norm));
  if (max_norm > 0) {
    const double factor = max_norm / (decision.norm + 1e-6);
    if (!(factor >= 1)) decision.clip_factor = factor;  // a NaN norm stays visible
  }
  decision.gradient_scale = decision.clip_factor / evidence.loss_scale;
  return decision;
}

double add_segments(std::span<const float> sums) {
  double total = 0;
  for (const float sum : sums) total += static_cast<double>(sum);
  return total;
}

}  // namespace outboard
