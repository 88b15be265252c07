// When the host update of a step may start and in which order its chunks go. A schedule is a pure
// decision; the pipeline carries it out.
#ifndef OUTBOARD_OFFLOAD_SCHEDULE_H_
#define OUTBOARD_OFFLOAD_SCHEDULE_H_

#include "outboard/options.h"

namespace outboard {

/// What has to be known before the first chunk of a step may be updated.
enum class UpdateStart {
  kWhenGradientArrived,  ///< each chunk on its own: nothing about other gradients is needed
  kWhenNormKnown,  ///< the global norm decides about scaling or skipping, so every gradient comes
                   ///< first
};

/// Clipping, loss scaling and exact skipping each depend on all gradients; without them a chunk
/// depends on its own.
[[nodiscard]] constexpr UpdateStart update_start(Schedule schedule, bool is_clipped,
                                                 bool has_loss_scale, bool skips_nonfinite) {
  const bool needs_norm = is_clipped || has_loss_scale || skips_nonfinite;
  switch (schedule) {
    case Schedule::kAtStep:
      break;
  }
  return needs_norm ? UpdateStart::kWhenNormKnown : UpdateStart::kWhenGradientArrived;
}

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_SCHEDULE_H_
