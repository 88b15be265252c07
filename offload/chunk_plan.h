// Cuts parameters into chunks, the unit of pipeline work. A pure function of sizes; no memory, no
// device.
#ifndef OUTBOARD_OFFLOAD_CHUNK_PLAN_H_
#define OUTBOARD_OFFLOAD_CHUNK_PLAN_H_

#include <cstddef>
#include <span>
#include <vector>

namespace outboard {

/// A run of one parameter. `first` is a multiple of the plan's chunk_elements, so piece k of a
/// parameter starts at k * chunk_elements.
struct Piece {
  size_t parameter;
  size_t first;
  size_t last;
};

/// What is updated in one go: one piece of a large parameter, or several small parameters.
struct Chunk {
  std::vector<Piece> pieces;
  size_t elements = 0;
};

/// One parameter to plan for.
struct PlannedParameter {
  size_t parameter;
  size_t elements;
};

/// Rounds the wish for a chunk's length up to what every format's blocks and every norm segment
/// divide.
[[nodiscard]] size_t whole_chunk_elements(size_t elements);

/// Chunks of at most `chunk_elements` (from whole_chunk_elements()) elements, in the order in which
/// backward produces gradients: the last parameter first. Every element is in exactly one piece; a
/// piece never exceeds a chunk.
[[nodiscard]] std::vector<Chunk> plan_chunks(std::span<const PlannedParameter> parameters,
                                             size_t chunk_elements);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHUNK_PLAN_H_
