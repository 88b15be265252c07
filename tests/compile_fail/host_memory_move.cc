// Arrays point into the HostMemory that gave them: it stays where it is.
#include <utility>

#include "offload/memory/host_memory.h"

namespace outboard {

void keep(HostMemory& memory) {
#ifdef OUTBOARD_MUST_NOT_COMPILE
  HostMemory moved(std::move(memory));
#else
  HostMemory& moved(memory);
#endif
  moved.rollback();
}

}  // namespace outboard
