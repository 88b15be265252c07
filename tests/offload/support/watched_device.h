// A device around the fake one that shows each call to the test before it is made; the test may
// throw, count or wait there. Queues and events are wrapped too.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_WATCHED_DEVICE_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_WATCHED_DEVICE_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

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
  kCopyOnDevice,
  kWriteToHost,
  kAllocate,
  kPin,
  kUnpin,
};

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

/// Events behind the copies of all queues, and the queues themselves: like CUDA's, a queue that is
/// destroyed goes on with its work, and nobody waits for that.
class Copies {
 public:
  std::shared_ptr<CopyQueue> keep(std::unique_ptr<CopyQueue> queue) {
    const std::lock_guard lock(mutex_);
    queues_.push_back(std::move(queue));
    return queues_.back();
  }
  void add(EventPtr event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
  }
  [[nodiscard]] bool are_done() {
    const std::lock_guard lock(mutex_);
    return std::all_of(events_.begin(), events_.end(),
                       [](const EventPtr& event) { return event->is_done(); });
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<CopyQueue>> queues_;
  std::vector<EventPtr> events_;
};

class WatchedQueue final : public CopyQueue {
 public:
  WatchedQueue(std::shared_ptr<CopyQueue> inner, std::shared_ptr<const Watcher> watcher,
               std::shared_ptr<Copies> copies)
      : inner_(std::move(inner)), watcher_(std::move(watcher)), copies_(std::move(copies)) {}
  void wait(const EventPtr& event) override {
    (*watcher_)(Call::kQueueWait, nullptr);
    inner_->wait(WatchedEvent::unwrap(event));
  }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    (*watcher_)(Call::kCopyToHost, nullptr);
    inner_->copy_to_host(host, device, bytes);
    copies_->add(inner_->record());
  }
  void copy_to_device(void* device, const void* host, size_t bytes) override {
    (*watcher_)(Call::kCopyToDevice, nullptr);
    inner_->copy_to_device(device, host, bytes);
    copies_->add(inner_->record());
  }
  [[nodiscard]] EventPtr record() override {
    (*watcher_)(Call::kQueueRecord, nullptr);
    return std::make_shared<WatchedEvent>(inner_->record(), watcher_);
  }

 private:
  std::shared_ptr<CopyQueue> inner_;
  std::shared_ptr<const Watcher> watcher_;
  std::shared_ptr<Copies> copies_;
};

class WatchedDevice final : public Device {
 public:
  WatchedDevice(std::shared_ptr<Device> inner, Watcher watcher)
      : inner_(std::move(inner)), watcher_(std::make_shared<const Watcher>(std::move(watcher))) {}

  [[nodiscard]] std::unique_ptr<CopyQueue> make_copy_queue() override {
    return std::make_unique<WatchedQueue>(copies_->keep(inner_->make_copy_queue()), watcher_,
                                          copies_);
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
  [[nodiscard]] bool is_capturing(ComputeStream) const override { return captures; }
  [[nodiscard]] ComputeStream make_stream() override { return inner_->make_stream(); }
  void copy_on_device(ComputeStream stream, void* target, const void* source,
                      size_t bytes) override {
    (*watcher_)(Call::kCopyOnDevice, nullptr);
    inner_->copy_on_device(stream, target, source, bytes);
  }
  void write_to_host(ComputeStream stream, float* host, const float* device,
                     size_t count) override {
    (*watcher_)(Call::kWriteToHost, nullptr);
    inner_->write_to_host(stream, host, device, count);
  }
  void poison(ComputeStream stream, void* target, size_t bytes) override {
    inner_->poison(stream, target, bytes);
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
  void unpin(void* host, size_t bytes) noexcept override {
    (*watcher_)(Call::kUnpin, nullptr);
    inner_->unpin(host, bytes);
  }
  /// No copy that was enqueued so far touches memory any more.
  [[nodiscard]] bool is_idle() const { return copies_->are_done(); }

  /// What is_capturing() answers; updates run all the same.
  bool captures = false;

 private:
  std::shared_ptr<Copies> copies_ = std::make_shared<Copies>();
  std::shared_ptr<Device> inner_;
  std::shared_ptr<const Watcher> watcher_;
};

/// Holds work on a stream, or a thread, until it is opened. Opening twice is fine.
class Gate {
 public:
  void open() {
    is_open_ = true;
    is_open_.notify_all();
  }
  void wait() const { is_open_.wait(false); }

 private:
  std::atomic<bool> is_open_ = false;
};

/// Gives code that fails to wait the time to go wrong: returns as soon as `has_gone_wrong`, or
/// after a while. Right code never depends on it.
template <class Condition>
bool happens_soon(Condition has_gone_wrong) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  while (std::chrono::steady_clock::now() < end) {
    if (has_gone_wrong()) return true;
    std::this_thread::yield();
  }
  return false;
}

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
