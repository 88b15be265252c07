// Chunk planning; see chunk_plan.h.
#include "offload/chunk_plan.h"

#include <algorithm>
#include <ranges>

#include "outboard/types.h"

namespace outboard {

size_t whole_chunk_elements(size_t elements) {
  return round_up(std::max<size_t>(elements, 1), kNormSegmentElements);
}

std::vector<Chunk> plan_chunks(std::span<const PlannedParameter> parameters,
                               size_t chunk_elements) {
  std::vector<Chunk> chunks;
  for (const PlannedParameter& parameter : parameters | std::views::reverse) {
    for (size_t first = 0; first < parameter.elements; first += chunk_elements) {
      const size_t last = std::min(first + chunk_elements, parameter.elements);
      if (chunks.empty() || chunks.back().elements + (last - first) > chunk_elements) {
        chunks.emplace_back();
      }
      chunks.back().pieces.push_back({parameter.parameter, first, last});
      chunks.back().elements += last - first;
    }
  }
  return chunks;
}

}  // namespace outboard
