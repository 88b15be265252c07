// One stream of the fake device: a thread that works in order, with random delays, and the events
// that it completes. What the work is lives in simulated_device.cc.
#ifndef OUTBOARD_OFFLOAD_DEVICES_SIMULATED_STREAM_H_
#define OUTBOARD_OFFLOAD_DEVICES_SIMULATED_STREAM_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "outboard/device.h"

namespace outboard {

/// Completed once, by the stream that recorded it, with the failure of the work before it, if any.
/// Thread safe.
class SimulatedEvent final : public Event {
 public:
  void synchronize() const override;
  [[nodiscard]] bool is_done() const override;

  /// Marks it as done now. `failure` is the message of the work that failed, or empty.
  void complete(const std::string& failure);
  /// Blocks until it is done; the failure's message, or empty.
  [[nodiscard]] std::string outcome() const;
  /// When it was completed. Only once it is done.
  [[nodiscard]] std::chrono::steady_clock::time_point time() const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable is_complete_;
  bool is_done_ = false;
  std::string failure_;
  std::chrono::steady_clock::time_point time_;
};

/// Microseconds by which work `index` of stream `number` is delayed: a function of its arguments,
/// in [0, options.max_delay_microseconds].
[[nodiscard]] uint64_t simulated_delay(const SimulatedDeviceOptions& options, uint64_t number,
                                       uint64_t index);

/// A thread with a list of work. Like a CUDA stream it does not recover: what follows failed work
/// is not run, and every later event carries the failure. Any thread may enqueue; destruction first
/// finishes everything.
class SimulatedStream {
 public:
  /// Work n of this stream, counted from 0, is delayed by simulated_delay(options, number, n).
  SimulatedStream(const SimulatedDeviceOptions& options, uint64_t number);
  ~SimulatedStream();
  SimulatedStream(const SimulatedStream&) = delete;
  SimulatedStream& operator=(const SimulatedStream&) = delete;

  /// Runs `work` after everything enqueued so far: `begin` at once when its turn comes, `work`
  /// after the delay. Either may be empty. Exceptions become the stream's failure.
  void enqueue(std::function<void()> begin, std::function<void()> work);
  /// What is enqueued later starts after `event`; a failure carries over. Null is ignored.
  void wait(const EventPtr& event);
  [[nodiscard]] EventPtr record();

 private:
  struct Item {
    std::function<void()> begin;
    std::function<void()> work;
    EventPtr awaited;
    std::shared_ptr<SimulatedEvent> completed;
  };
  void push(Item item);
  void serve();
  void execute(Item& item);
  void run(const Item& item);
  void delay();

  SimulatedDeviceOptions options_;
  uint64_t number_;
  uint64_t executed_ = 0;  // this and failure_: the thread's own
  std::string failure_;
  std::mutex mutex_;  // guards the three below
  std::condition_variable has_items_;
  std::deque<Item> items_;
  bool is_closing_ = false;
  std::thread thread_;  // last: it starts when everything else is there
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_DEVICES_SIMULATED_STREAM_H_
