// mmap, madvise and the first touch in parallel.
#include "offload/memory/memory_mapping.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "outboard/types.h"

namespace outboard {
namespace {

// What one thread makes resident at a time: some milliseconds of zeroing.
constexpr size_t kPieceBytes = size_t{64} << 20;
// MADV_POPULATE_WRITE, Linux 5.14; older headers do not name it.
constexpr int kPopulateWrite = 23;

size_t page_bytes() { return static_cast<size_t>(::sysconf(_SC_PAGESIZE)); }

size_t usable_cores() {
  cpu_set_t cores;
  if (::sched_getaffinity(0, sizeof(cores), &cores) == 0) {
    return static_cast<size_t>(std::max(1, CPU_COUNT(&cores)));
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

void touch(char* begin, size_t bytes) {
  // One call instead of a fault per page, and an error where a touch would be a signal.
  int error = 0;
  do {
    error = ::madvise(begin, bytes, kPopulateWrite) == 0 ? 0 : errno;
  } while (error == EINTR || error == EAGAIN);
  if (error == 0) return;
  if (error == ENOMEM) throw std::system_error(error, std::generic_category(), "madvise");
  const size_t step = page_bytes();
  for (size_t offset = 0; offset < bytes; offset += step) {
    *const_cast<volatile char*>(begin + offset) = 0;
  }
}

struct Piece {
  size_t extent;
  char* begin;
  size_t bytes;
};

// Pieces are taken in order, so extents become resident one after the other and what follows on one
// runs beside the touching of the next.
class Residence {
 public:
  Residence(std::span<const Extent> extents, const std::function<void(size_t)>& when_resident)
      : when_resident_(when_resident), left_(extents.size()) {
    for (size_t i = 0; i < extents.size(); ++i) {
      const size_t bytes = extents[i].bytes;
      for (size_t offset = 0; offset < bytes; offset += kPieceBytes) {
        pieces_.push_back({i, extents[i].begin + offset, std::min(kPieceBytes, bytes - offset)});
      }
      left_[i].store((bytes + kPieceBytes - 1) / kPieceBytes, std::memory_order_relaxed);
    }
  }

  [[nodiscard]] size_t pieces() const { return pieces_.size(); }

  void work() noexcept {
    try {
      for (size_t i = next_++; i < pieces_.size() && !has_failed_; i = next_++) {
        touch(pieces_[i].begin, pieces_[i].bytes);
        if (--left_[pieces_[i].extent] == 0) when_resident_(pieces_[i].extent);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      has_failed_ = true;
    }
  }

  // Only after every worker has been joined.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const std::function<void(size_t)>& when_resident_;
  std::vector<Piece> pieces_;
  std::vector<std::atomic<size_t>> left_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> has_failed_ = false;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

size_t page_rounded(size_t bytes) { return round_up(bytes, page_bytes()); }

MemoryMapping::MemoryMapping(size_t bytes) : bytes_(page_rounded(bytes)) {
  // One mapping for everything lets the system's overcommit check see the whole demand. Aligned by
  // cutting both ends off a longer one.
  const size_t longer = bytes_ + kHugePageBytes;
  void* const mapped =
      ::mmap(nullptr, longer, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  char* const first = static_cast<char*>(mapped);
  const size_t head = -reinterpret_cast<uintptr_t>(first) % kHugePageBytes;
  begin_ = first + head;
  if (head > 0) ::munmap(first, head);
  ::munmap(begin_ + bytes_, longer - head - bytes_);
}

MemoryMapping::~MemoryMapping() {
  if (begin_ != nullptr) ::munmap(begin_, bytes_);
}

void advise_huge_pages(char* begin, size_t bytes) {
  const size_t head = -reinterpret_cast<uintptr_t>(begin) % kHugePageBytes;
  if (bytes < head) return;
  const size_t whole = (bytes - head) / kHugePageBytes * kHugePageBytes;
  if (whole > 0) ::madvise(begin + head, whole, MADV_HUGEPAGE);
}

void make_resident(std::span<const Extent> extents, int threads,
                   const std::function<void(size_t extent)>& when_resident) {
  Residence residence(extents, when_resident);
  const size_t wanted = threads > 0 ? static_cast<size_t>(threads) : usable_cores();
  {
    std::vector<std::jthread> helpers;
    for (size_t i = 1; i < std::min(wanted, residence.pieces()); ++i) {
      try {
        helpers.emplace_back([&residence] { residence.work(); });
      } catch (const std::system_error&) {
        break;  // no more threads to be had: those that run do it all
      }
    }
    residence.work();
  }
  residence.rethrow();
}

}  // namespace outboard
