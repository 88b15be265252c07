// A piece cannot be updated without the proof that its gradient is on its way.
#include "offload/host_update.h"

namespace outboard {

PieceUpdate first_piece(GradientIntake& intake, Parameter& parameter) {
#ifdef OUTBOARD_MUST_NOT_COMPILE
  (void)intake;
  return {.parameter = &parameter,
          .index = 0,
          .first = 0,
          .last = 1,
          .gradient = nullptr,
          .gradient_type = DType::kF32,
          .step = 1,
          .weight_is_free = nullptr};
#else
  return {.parameter = &parameter,
          .index = 0,
          .first = 0,
          .last = 1,
          .arrival = intake.piece(parameter, 0),
          .gradient = nullptr,
          .gradient_type = DType::kF32,
          .step = 1,
          .weight_is_free = nullptr};
#endif
}

}  // namespace outboard
