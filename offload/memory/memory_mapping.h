// Anonymous memory straight from the system: one mapping, and making its pages resident in
// parallel. Knows nothing of arrays or devices.
#ifndef OUTBOARD_OFFLOAD_MEMORY_MEMORY_MAPPING_H_
#define OUTBOARD_OFFLOAD_MEMORY_MEMORY_MAPPING_H_

#include <cstddef>
#include <functional>
#include <span>
#include <utility>

namespace outboard {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

/// `bytes` rounded up to whole pages of the system.
[[nodiscard]] size_t page_rounded(size_t bytes);

/// Private zero-filled memory, unmapped on destruction. Move-only.
class MemoryMapping {
 public:
  MemoryMapping() = default;
  /// Maps `bytes` (rounded up to pages) at a multiple of kHugePageBytes. Pages become resident when
  /// touched. Throws std::system_error if the system refuses.
  explicit MemoryMapping(size_t bytes);
  ~MemoryMapping();
  MemoryMapping(MemoryMapping&& other) noexcept
      : begin_(std::exchange(other.begin_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  MemoryMapping& operator=(MemoryMapping&& other) noexcept {
    std::swap(begin_, other.begin_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  MemoryMapping(const MemoryMapping&) = delete;
  MemoryMapping& operator=(const MemoryMapping&) = delete;

  [[nodiscard]] char* begin() const { return begin_; }
  [[nodiscard]] size_t bytes() const { return bytes_; }

 private:
  char* begin_ = nullptr;
  size_t bytes_ = 0;
};

/// Asks for huge pages in the whole huge pages that [begin, begin + bytes) holds, and nowhere else:
/// rounding up would make up to 2 MiB more resident than was asked for. A hint; never fails.
void advise_huge_pages(char* begin, size_t bytes);

/// A stretch of memory to make resident.
struct Extent {
  char* begin = nullptr;
  size_t bytes = 0;
};

/// Makes every page of `extents` resident, and calls `when_resident(i)` once extent i is, in
/// whatever order and thread that happens; up to `threads` calls run at the same time (0: one per
/// core that the process may use; the calling thread is one of them). Returns when all is done.
/// Rethrows the first exception; throws std::system_error if the system has no more pages.
void make_resident(std::span<const Extent> extents, int threads,
                   const std::function<void(size_t extent)>& when_resident);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_MEMORY_MEMORY_MAPPING_H_
