// Host memory that a parameter does not use any more and may need again: of other state formats, of
// another placement. Keeps books; allocates nothing.
#ifndef OUTBOARD_OFFLOAD_SPARE_MEMORY_H_
#define OUTBOARD_OFFLOAD_SPARE_MEMORY_H_

#include <cstddef>
#include <set>
#include <vector>

#include "offload/parameter.h"

namespace outboard {

/// Each piece is for its own parameter alone: shared out among all, each change would cut memory
/// into smaller pieces. Copies are cheap enough to go back to one when something fails.
class SpareMemory {
 public:
  /// Pieces begin at multiples of this and are as long.
  static constexpr size_t kAlignment = 64;

  /// `slab`: where in HostMemory the piece lies. Neighbours in one slab become one piece.
  void add(const Parameter& owner, void* begin, size_t bytes, size_t slab);
  /// The first `bytes` of the smallest piece that holds them; null if there is none.
  [[nodiscard]] void* take(const Parameter& owner, size_t bytes);

  [[nodiscard]] bool has(const Parameter& owner) const;
  /// The slabs in which the owner has pieces.
  [[nodiscard]] std::set<size_t> slabs_of(const Parameter& owner) const;
  /// Of all owners.
  [[nodiscard]] size_t bytes() const;

 private:
  struct Piece {
    const Parameter* owner;
    std::byte* begin;
    size_t bytes;
    size_t slab;
  };
  void merge();

  std::vector<Piece> pieces_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_SPARE_MEMORY_H_
