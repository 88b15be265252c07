// The slots' bookkeeping: one mutex, one condition.
#include "offload/memory/staging_ring.h"

#include "outboard/error.h"

namespace outboard {

StagingRing::StagingRing(HostMemory& memory, size_t slots, size_t slot_bytes)
    : slot_bytes_(slot_bytes) {
  if (slots == 0 || slot_bytes == 0) {
    fail(ErrorKind::kValue, "StagingRing", slots, " slots of ", slot_bytes,
         " bytes hold nothing; give at least one slot and one byte");
  }
  arrays_.reserve(slots);
  free_.reserve(slots);
  for (size_t index = 0; index < slots; ++index) {
    arrays_.push_back(memory.reserve(slot_bytes, MemoryKind::kStaging, true));
    free_.push_back(slots - 1 - index);
  }
}

StagingRing::~StagingRing() = default;

StagingRing::Slot StagingRing::acquire(size_t bytes) {
  check(bytes);
  std::unique_lock lock(mutex_);
  if (free_.empty() && !is_closed_) {
    ++blocked_;
    ++waiting_;
    is_free_.wait(lock, [this] { return !free_.empty() || is_closed_; });
    --waiting_;
  }
  if (is_closed_) {
    fail(ErrorKind::kState, "StagingRing",
         "closed after an earlier failure; see that error and build a new optimizer");
  }
  return take();
}

std::optional<StagingRing::Slot> StagingRing::try_acquire(size_t bytes) {
  check(bytes);
  const std::lock_guard lock(mutex_);
  if (free_.empty() || is_closed_) return std::nullopt;
  return take();
}

void StagingRing::close() {
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
  }
  is_free_.notify_all();
}

size_t StagingRing::in_flight() const {
  const std::lock_guard lock(mutex_);
  return arrays_.size() - free_.size();
}

size_t StagingRing::waiting() const {
  const std::lock_guard lock(mutex_);
  return waiting_;
}

uint64_t StagingRing::acquired() const {
  const std::lock_guard lock(mutex_);
  return acquired_;
}

uint64_t StagingRing::blocked() const {
  const std::lock_guard lock(mutex_);
  return blocked_;
}

void StagingRing::check(size_t bytes) const {
  if (bytes > slot_bytes_) {
    fail(ErrorKind::kValue, "StagingRing", "a copy needs ", bytes, " bytes, a slot holds ",
         slot_bytes_, "; raise EngineOptions::slot_bytes");
  }
}

StagingRing::Slot StagingRing::take() {
  const size_t index = free_.back();
  free_.pop_back();
  ++acquired_;
  return Slot(this, index);
}

void StagingRing::give_back(size_t index) noexcept {
  // What the holder did with the slot happens before the next holder's use: both hold the mutex.
  // Notified under the lock, so that the ring may be destroyed once its last slot is back.
  const std::lock_guard lock(mutex_);
  free_.push_back(index);
  is_free_.notify_one();
}

}  // namespace outboard
