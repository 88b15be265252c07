// A device around the fake one that shows each call to the test before it is made; the test may
// throw, count or wait there. Queues and events are wrapped too.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_WATCHED_DEVICE_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_WATCHED_DEVICE_H_

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard::testing {

enum class Call {
  kCopyToHost,
  kCopyToDevice,
  kQueueWait,
  kQueueRecord,
  kSynchronize,
  kRecord,
  kWait,
  kSumOfSquares,
  kUpdateResident,
  kAllocate,
  kPin,
};
inline constexpr int kCalls = 11;

/// What the test wants to see of each call. May throw; pin then refuses.
using Watcher = std::function<void(Call call, const Event* event)>;

class WatchedEvent final : public Event {
 public:
  WatchedEvent(EventPtr inner, std::shared_ptr<const Watcher> watcher)
      : inner_(std::move(inner)), watcher_(std::move(watcher)) {}
  void synchronize() const override {
    (*watcher_)(Call::kSynchronize, inner_.get());
    inner_->synchronize();
  }
  [[nodiscard]] bool is_done() const override { return inner_->is_done(); }
  [[nodiscard]] const EventPtr& inner() const { return inner_; }

  static EventPtr unwrap(const EventPtr& event) {
    return event == nullptr ? nullptr : dynamic_cast<const WatchedEvent&>(*event).inner_;
  }

 private:
  EventPtr inner_;
  std::shared_ptr<const Watcher> watcher_;
};

class WatchedQueue final : public CopyQueue {
 public:
  WatchedQueue(std::unique_ptr<CopyQueue> inner, std::shared_ptr<const Watcher> watcher)
      : inner_(std::move(inner)), watcher_(std::move(watcher)) {}
  void wait(const EventPtr& event) override {
    (*watcher_)(Call::kQueueWait, nullptr);
    inner_->wait(WatchedEvent::unwrap(event));
  }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    (*watcher_)(Call::kCopyToHost, nullptr);
    inner_->copy_to_host(host, device, bytes);
  }
  void copy_to_device(void* device, const void* host, size_t bytes) override {
    (*watcher_)(Call::kCopyToDevice, nullptr);
    inner_->copy_to_device(device, host, bytes);
  }
  [[nodiscard]] EventPtr record() override {
    (*watcher_)(Call::kQueueRecord, nullptr);
    return std::make_shared<WatchedEvent>(inner_->record(), watcher_);
  }

 private:
  std::unique_ptr<CopyQueue> inner_;
  std::shared_ptr<const Watcher> watcher_;
};

class WatchedDevice final : public Device {
 public:
  WatchedDevice(std::shared_ptr<Device> inner, Watcher watcher)
      : inner_(std::move(inner)), watcher_(std::make_shared<const Watcher>(std::move(watcher))) {}

  [[nodiscard]] std::unique_ptr<CopyQueue> make_copy_queue() override {
    return std::make_unique<WatchedQueue>(inner_->make_copy_queue(), watcher_);
  }
  [[nodiscard]] EventPtr record(ComputeStream stream) override {
    (*watcher_)(Call::kRecord, nullptr);
    return std::make_shared<WatchedEvent>(inner_->record(stream), watcher_);
  }
  void wait(ComputeStream stream, const EventPtr& event) override {
    (*watcher_)(Call::kWait, nullptr);
    inner_->wait(stream, WatchedEvent::unwrap(event));
  }
  [[nodiscard]] double seconds_between(const Event& first, const Event& second) const override {
    return inner_->seconds_between(*dynamic_cast<const WatchedEvent&>(first).inner(),
                                   *dynamic_cast<const WatchedEvent&>(second).inner());
  }
  void sum_of_squares(ComputeStream stream, const void* gradient, DType type, size_t elements,
                      float* device_sums) override {
    (*watcher_)(Call::kSumOfSquares, nullptr);
    inner_->sum_of_squares(stream, gradient, type, elements, device_sums);
  }
  void update_resident(ComputeStream stream, std::span<const ResidentUpdate> updates) override {
    (*watcher_)(Call::kUpdateResident, nullptr);
    inner_->update_resident(stream, updates);
  }
  [[nodiscard]] std::shared_ptr<void> allocate(size_t bytes) override {
    (*watcher_)(Call::kAllocate, nullptr);
    return inner_->allocate(bytes);
  }
  [[nodiscard]] bool pin(void* host, size_t bytes) override {
    try {
      (*watcher_)(Call::kPin, nullptr);
    } catch (const Error&) {
      return false;
    }
    return inner_->pin(host, bytes);
  }
  void unpin(void* host, size_t bytes) noexcept override { inner_->unpin(host, bytes); }

 private:
  std::shared_ptr<Device> inner_;
  std::shared_ptr<const Watcher> watcher_;
};

/// Throws at call number `failing` (from 0) of one kind, once it is armed.
class Fault {
 public:
  explicit Fault(Call call) : call_(call) {}
  /// Counts from 0 again.
  void arm(int failing) {
    seen_ = 0;
    failing_ = failing;
  }
  void disarm() { failing_ = -1; }
  [[nodiscard]] bool has_struck() const { return seen_ > failing_ && failing_ >= 0; }
  void see(Call call) {
    if (call != call_ || failing_ < 0) return;
    if (seen_++ == failing_) fail(ErrorKind::kDevice, "Fault", "injected; catch it");
  }

 private:
  Call call_;
  std::atomic<int> seen_ = 0;
  std::atomic<int> failing_ = -1;
};

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_WATCHED_DEVICE_H_
