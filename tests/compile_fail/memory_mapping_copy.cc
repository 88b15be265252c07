// A mapping has one owner: copying the handle would unmap the memory twice.
#include <utility>

#include "offload/memory/memory_mapping.h"

namespace outboard {

MemoryMapping hand_over(MemoryMapping& mapping) {
#ifdef OUTBOARD_MUST_NOT_COMPILE
  return mapping;
#else
  return std::move(mapping);
#endif
}

}  // namespace outboard
