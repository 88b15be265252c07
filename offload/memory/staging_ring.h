// A bounded set of equal slots in pinned host memory. The free slot is the pipeline's only brake;
// what is copied into a slot, and when that copy is done, is the holder's business.
#ifndef OUTBOARD_OFFLOAD_MEMORY_STAGING_RING_H_
#define OUTBOARD_OFFLOAD_MEMORY_STAGING_RING_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "offload/memory/host_memory.h"

namespace outboard {

/// Hands out slots to any thread and takes them back from any thread.
class StagingRing {
 public:
  /// The right to use one slot's memory; given back on destruction. Destroy it only when no copy
  /// touches the slot any more, and before the ring.
  class Slot {
   public:
    Slot(Slot&& other) noexcept
        : ring_(std::exchange(other.ring_, nullptr)), index_(other.index_) {}
    Slot& operator=(Slot&& other) noexcept {
      std::swap(ring_, other.ring_);
      std::swap(index_, other.index_);
      return *this;
    }
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;
    ~Slot() {
      if (ring_ != nullptr) ring_->give_back(index_);
    }
    [[nodiscard]] void* data() const { return ring_->arrays_[index_].data(); }
    [[nodiscard]] size_t bytes() const { return ring_->slot_bytes_; }
    /// Which slot: below slots().
    [[nodiscard]] size_t index() const { return index_; }

   private:
    friend class StagingRing;
    Slot(StagingRing* ring, size_t index) : ring_(ring), index_(index) {}
    StagingRing* ring_;
    size_t index_;
  };

  /// Reserves `slots` transfer arrays of `slot_bytes` in `memory`, which must be committed before
  /// the first acquire. Throws Error(kValue) if either is 0, or Error(kMemory).
  StagingRing(HostMemory& memory, size_t slots, size_t slot_bytes);
  /// Every slot must be back.
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  /// A free slot that holds `bytes`; blocks until there is one. Throws Error(kValue) if no slot is
  /// that large, Error(kState) once the ring is closed.
  [[nodiscard]] Slot acquire(size_t bytes);
  /// The same without blocking: nothing if every slot is in flight.
  [[nodiscard]] std::optional<Slot> try_acquire(size_t bytes);

  /// No slot is handed out any more: blocked and later acquires throw. For the thread that can no
  /// longer give slots back.
  void close();

  [[nodiscard]] size_t slots() const { return arrays_.size(); }
  [[nodiscard]] size_t slot_bytes() const { return slot_bytes_; }
  [[nodiscard]] size_t in_flight() const;
  /// Threads that are blocked in acquire() now.
  [[nodiscard]] size_t waiting() const;
  /// Slots handed out since construction, and how many of those had to wait for one.
  [[nodiscard]] uint64_t acquired() const;
  [[nodiscard]] uint64_t blocked() const;

 private:
  void check(size_t bytes) const;
  [[nodiscard]] Slot take();
  void give_back(size_t index) noexcept;

  std::vector<HostArray> arrays_;
  size_t slot_bytes_;
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable is_free_;
  std::vector<size_t> free_;  // never grows past its first capacity
  size_t waiting_ = 0;
  uint64_t acquired_ = 0;
  uint64_t blocked_ = 0;
  bool is_closed_ = false;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_MEMORY_STAGING_RING_H_
