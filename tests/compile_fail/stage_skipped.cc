// What stage 1 returns is not what stage 3 accepts: no weight goes back that was not updated.
#include "offload/weight_return.h"

namespace outboard {

void send(GradientIntake& intake, HostUpdate& update, WeightReturn& weight_return,
          Parameter& parameter) {
  const GradientOnHost gradient = intake.piece(parameter, 0);
#ifdef OUTBOARD_MUST_NOT_COMPILE
  (void)update;
  weight_return.send(gradient);
#else
  weight_return.send(update.update({{&parameter, 0, 0, 1, gradient, {}}}));
#endif
}

}  // namespace outboard
