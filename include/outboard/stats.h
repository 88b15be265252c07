// What the engine reports about its memory and its last step.
#ifndef OUTBOARD_STATS_H_
#define OUTBOARD_STATS_H_

#include <cstddef>
#include <cstdint>

namespace outboard {

/// Bytes held, by kind. Host kinds are exact sizes of mapped memory.
struct MemoryStats {
  size_t host_weights = 0;  ///< host images of device weights (the high half of a split master)
  size_t host_masters = 0;  ///< what split masters add, and fp32 masters
  size_t host_state = 0;
  size_t host_gradients = 0;     ///< gradient store
  size_t host_accumulators = 0;  ///< fp32 sums over micro-batches
  size_t host_staging = 0;       ///< ring slots and segment sums
  size_t host_spare = 0;         ///< kept for what a parameter may need again: of other formats and
                                 ///< placements
  size_t host_pinned = 0;        ///< how much of the above is registered with the device
  size_t device_state = 0;       ///< state and masters of resident parameters
  size_t device_workspace = 0;   ///< segment sums
};

/// Times of the last step, in seconds, and counters. Of updates that a step does not wait for, the
/// first two are known when the next step begins.
struct StepStats {
  double waiting_for_gradients = 0;  ///< driver blocked on gradient copies
  double updating = 0;               ///< CPU kernels
  double returning =
      0;  ///< from the last update to the end of the last weight copy, as the device saw it
  double exposed = 0;        ///< device time in which the caller's stream waited for weights: after
                             ///< backward at kAtStep, in the forwards since the last step else
  double in_step = 0;        ///< host time inside step()
  double gradient_norm = 0;  ///< of the unscaled gradient; 0 when nothing asked for it
  double clip_factor = 1;
  int64_t steps = 0;            ///< steps taken
  int64_t skipped_steps = 0;    ///< steps skipped because of Inf or NaN
  int64_t early_updates = 0;    ///< parameters updated in backward, in all
  int64_t dropped_updates = 0;  ///< of these, how many were dropped and made again
  int64_t resent_gradients =
      0;  ///< gradients sent again because they changed after backward, since construction
};

}  // namespace outboard

#endif  // OUTBOARD_STATS_H_
