// Looking up a SIMD function: what must happen before HWY_DYNAMIC_DISPATCH is used as an address.
#ifndef OUTBOARD_QUANT_DISPATCH_H_
#define OUTBOARD_QUANT_DISPATCH_H_

#include "hwy/targets.h"

namespace outboard {

/// Fixes the target that `&HWY_DYNAMIC_DISPATCH(F)` selects. Asks the CPU once per process, and
/// again after a test has forced a target: in a virtual machine each question leaves the guest and
/// costs tens of microseconds.
inline void choose_target() {
  hwy::ChosenTarget& chosen = hwy::GetChosenTarget();
  if (!chosen.IsInitialized()) chosen.Update(hwy::SupportedTargets());
}

}  // namespace outboard

#endif  // OUTBOARD_QUANT_DISPATCH_H_
