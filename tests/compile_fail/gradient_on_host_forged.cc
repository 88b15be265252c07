// Stage 2 takes only gradients that stage 1 has sent on their way: the proof cannot be made by
// hand.
#include "offload/host_update.h"

namespace outboard {

PieceUpdate first_piece(GradientIntake& intake, Parameter& parameter, const EventPtr& arrived) {
#ifdef OUTBOARD_MUST_NOT_COMPILE
  return {&parameter, 0, 0, 1, GradientOnHost(arrived), {}};
#else
  (void)arrived;
  return {&parameter, 0, 0, 1, intake.piece(parameter, 0), {}};
#endif
}

}  // namespace outboard
