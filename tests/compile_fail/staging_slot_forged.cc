// A slot cannot be made without a ring, so nobody holds one that no ring counts.
#include "offload/memory/staging_ring.h"

namespace outboard {

StagingRing::Slot take(StagingRing& ring) {
#ifdef OUTBOARD_MUST_NOT_COMPILE
  return StagingRing::Slot(&ring, 0);
#else
  return ring.acquire(1);
#endif
}

}  // namespace outboard
