// Stage 3 takes only weights that stage 2 has updated: the proof cannot be made by hand.
#include "offload/weight_return.h"

namespace outboard {

void send(HostUpdate& update, WeightReturn& weight_return, Parameter& parameter) {
#ifdef OUTBOARD_MUST_NOT_COMPILE
  (void)update;
  weight_return.send(UpdatedWeight({{&parameter, 0, 0, 1}}));
#else
  weight_return.send(update.adopt(parameter));
#endif
}

}  // namespace outboard
