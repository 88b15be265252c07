// When the update of a step may start and who waits for it. A schedule is a pure decision; the
// pipeline carries it out.
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
[[nodiscard]] constexpr UpdateStart update_start(bool is_clipped, bool has_loss_scale,
                                                 bool skips_nonfinite) {
  return is_clipped || has_loss_scale || skips_nonfinite ? UpdateStart::kWhenNormKnown
                                                         : UpdateStart::kWhenGradientArrived;
}

/// How the updates of a backward may run before its step.
enum class EarlyStart {
  kNot,
  kTentative,  ///< into second copies: the factor of the step is a guess
  kFinal,      ///< in place
};

/// A gradient that its owner has given away cannot change any more, and without a norm nothing else
/// can change its update.
[[nodiscard]] constexpr EarlyStart early_start(Schedule schedule, UpdateStart start,
                                               bool owns_gradients) {
  if (schedule != Schedule::kInBackward) return EarlyStart::kNot;
  return start == UpdateStart::kWhenGradientArrived && owns_gradients ? EarlyStart::kFinal
                                                                      : EarlyStart::kTentative;
}

/// Whether guessing is worth it: an update that is dropped has cost the link as much as one that is
/// kept. After a drop it pauses, longer each time that the first guess after a pause fails as well.
class Acceptance {
 public:
  [[nodiscard]] bool allows_guess() const { return pause_ == 0; }
  /// A step was made; `would_accept` says whether a guess was right, or would have been.
  void note(bool would_accept) {
    if (would_accept) {
      if (pause_ > 0) --pause_;
      if (pause_ == 0 && ++run_ >= kForgetAfter) next_pause_ = 1;
      return;
    }
    run_ = 0;
    pause_ = next_pause_;
    next_pause_ = next_pause_ < kLongestPause ? 2 * next_pause_ : kLongestPause;
  }

 private:
  static constexpr int kLongestPause = 64;
  static constexpr int kForgetAfter = 16;  // guesses in a row that were right
  int pause_ = 0;                          // steps that must be guessable before the next guess
  int next_pause_ = 1;
  int run_ = 0;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_SCHEDULE_H_
