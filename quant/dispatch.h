// Looking up a SIMD function: once per tensor, so that no loop dispatches.
#ifndef OUTBOARD_QUANT_DISPATCH_H_
#define OUTBOARD_QUANT_DISPATCH_H_

#include "hwy/highway.h"
#include "hwy/targets.h"

/// The address of the exported function `F` for the chosen target, after choose_target(). Old
/// versions of the SIMD library have no name for it, in new ones the call expression is no lvalue,
/// and where there is but one target, it names a namespace that is not visible everywhere.
#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0
#define OUTBOARD_SIMD_FUNCTION(F) (HWY_DISPATCH_TABLE(F)[0])
#elif defined(HWY_DYNAMIC_POINTER)
#define OUTBOARD_SIMD_FUNCTION(F) HWY_DYNAMIC_POINTER(F)
#else
#define OUTBOARD_SIMD_FUNCTION(F) (&HWY_DYNAMIC_DISPATCH(F))
#endif

namespace outboard {

/// Fixes the target that OUTBOARD_SIMD_FUNCTION selects. Asks the CPU once per process, and
/// again after a test has forced a target: in a virtual machine each question leaves the guest and
/// costs tens of microseconds.
inline void choose_target() {
  hwy::ChosenTarget& chosen = hwy::GetChosenTarget();
  if (!chosen.IsInitialized()) chosen.Update(hwy::SupportedTargets());
}

}  // namespace outboard

#endif  // OUTBOARD_QUANT_DISPATCH_H_
