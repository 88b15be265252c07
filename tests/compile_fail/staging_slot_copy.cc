// A slot has one holder: copying the handle would give the slot back twice.
#include <utility>

#include "offload/memory/staging_ring.h"

namespace outboard {

StagingRing::Slot hand_over(StagingRing::Slot& slot) {
#ifdef OUTBOARD_MUST_NOT_COMPILE
  return slot;
#else
  return std::move(slot);
#endif
}

}  // namespace outboard
