// Books of unused host memory; see spare_memory.h.
#include "offload/spare_memory.h"

#include <algorithm>

#include "outboard/types.h"

namespace outboard {

void SpareMemory::add(const Parameter& owner, void* begin, size_t bytes, size_t slab) {
  if (begin == nullptr || bytes == 0) return;
  pieces_.push_back({&owner, static_cast<std::byte*>(begin), round_up(bytes, kAlignment), slab});
  merge();
}

// Or what was cut into codes and scales would never hold fp32 again. Within a slab: a copy may not
// straddle two ranges that are registered with the device.
void SpareMemory::merge() {
  std::ranges::sort(pieces_, {}, &Piece::begin);
  std::vector<Piece> merged;
  for (const Piece& piece : pieces_) {
    const bool follows = !merged.empty() && merged.back().owner == piece.owner &&
                         merged.back().slab == piece.slab &&
                         merged.back().begin + merged.back().bytes == piece.begin;
    if (follows) {
      merged.back().bytes += piece.bytes;
    } else if (piece.bytes > 0) {
      merged.push_back(piece);
    }
  }
  pieces_ = std::move(merged);
}

void* SpareMemory::take(const Parameter& owner, size_t bytes) {
  const size_t wanted = round_up(bytes, kAlignment);
  Piece* best = nullptr;
  for (Piece& piece : pieces_) {
    if (piece.owner != &owner || piece.bytes < wanted) continue;
    if (best == nullptr || piece.bytes < best->bytes) best = &piece;
  }
  if (wanted == 0 || best == nullptr) return nullptr;
  std::byte* const memory = best->begin;
  best->begin += wanted;
  best->bytes -= wanted;
  return memory;
}

bool SpareMemory::has(const Parameter& owner) const {
  return std::ranges::any_of(
      pieces_, [&](const Piece& piece) { return piece.owner == &owner && piece.bytes > 0; });
}

std::set<size_t> SpareMemory::slabs_of(const Parameter& owner) const {
  std::set<size_t> slabs;
  for (const Piece& piece : pieces_) {
    if (piece.owner == &owner) slabs.insert(piece.slab);
  }
  return slabs;
}

size_t SpareMemory::bytes() const {
  size_t sum = 0;
  for (const Piece& piece : pieces_) sum += piece.bytes;
  return sum;
}

}  // namespace outboard
