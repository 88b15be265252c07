// Threads, delays and events of the fake device.
#include "offload/devices/simulated_stream.h"

#include <exception>
#include <utility>

#include "outboard/error.h"
#include "quant/random.h"

namespace outboard {
namespace {

const SimulatedEvent& as_simulated(const Event& event) {
  const auto* const simulated = dynamic_cast<const SimulatedEvent*>(&event);
  if (simulated == nullptr) {
    fail(ErrorKind::kDevice, "SimulatedDevice",
         "an event of another kind of device; wait only for events of simulated streams");
  }
  return *simulated;
}

}  // namespace

void SimulatedEvent::synchronize() const {
  const std::string failure = outcome();
  if (!failure.empty()) throw Error(ErrorKind::kDevice, failure);
}

bool SimulatedEvent::is_done() const {
  const std::lock_guard lock(mutex_);
  return is_done_;
}

void SimulatedEvent::complete(const std::string& failure) {
  const std::lock_guard lock(mutex_);
  failure_ = failure;
  time_ = std::chrono::steady_clock::now();
  is_done_ = true;
  is_complete_.notify_all();
}

std::string SimulatedEvent::outcome() const {
  std::unique_lock lock(mutex_);
  is_complete_.wait(lock, [this] { return is_done_; });
  return failure_;
}

std::chrono::steady_clock::time_point SimulatedEvent::time() const {
  const std::lock_guard lock(mutex_);
  return time_;
}

uint64_t simulated_delay(const SimulatedDeviceOptions& options, uint64_t number, uint64_t index) {
  if (options.max_delay_microseconds <= 0) return 0;
  const uint64_t drawn = splitmix64(splitmix64(options.seed ^ splitmix64(number)) + index);
  return drawn % (static_cast<uint64_t>(options.max_delay_microseconds) + 1);
}

SimulatedStream::SimulatedStream(const SimulatedDeviceOptions& options, uint64_t number)
    : options_(options), number_(number), thread_([this] { serve(); }) {}

SimulatedStream::~SimulatedStream() {
  // Everything that was enqueued runs: events of this stream may be awaited by others, and events
  // are only awaited after they were recorded, so the wait for other streams ends.
  {
    const std::lock_guard lock(mutex_);
    is_closing_ = true;
  }
  has_items_.notify_one();
  thread_.join();
}

void SimulatedStream::enqueue(std::function<void()> begin, std::function<void()> work) {
  push({.begin = std::move(begin), .work = std::move(work), .awaited = {}, .completed = {}});
}

void SimulatedStream::wait(const EventPtr& event) {
  if (event == nullptr) return;
  (void)as_simulated(*event);
  push({.begin = {}, .work = {}, .awaited = event, .completed = {}});
}

EventPtr SimulatedStream::record() {
  auto event = std::make_shared<SimulatedEvent>();
  push({.begin = {}, .work = {}, .awaited = {}, .completed = event});
  return event;
}

void SimulatedStream::push(Item item) {
  {
    const std::lock_guard lock(mutex_);
    items_.push_back(std::move(item));
  }
  has_items_.notify_one();
}

void SimulatedStream::serve() {
  for (;;) {
    Item item;
    {
      std::unique_lock lock(mutex_);
      has_items_.wait(lock, [this] { return is_closing_ || !items_.empty(); });
      if (items_.empty()) return;
      item = std::move(items_.front());
      items_.pop_front();
    }
    execute(item);
  }
}

void SimulatedStream::execute(Item& item) {
  if (item.completed != nullptr) {
    item.completed->complete(failure_);
    return;
  }
  try {
    if (failure_.empty()) run(item);
  } catch (const std::exception& error) {
    failure_ = std::string("[SimulatedDevice] enqueued work failed: ") + error.what() +
               "; this stream runs nothing any more";
  } catch (...) {
    failure_ = "[SimulatedDevice] enqueued work threw something that is no std::exception";
  }
}

void SimulatedStream::run(const Item& item) {
  if (item.awaited != nullptr) {
    failure_ = as_simulated(*item.awaited).outcome();
    return;
  }
  if (item.begin) item.begin();
  delay();
  if (item.work) item.work();
}

void SimulatedStream::delay() {
  const uint64_t microseconds = simulated_delay(options_, number_, executed_++);
  // The simulated latency itself, not a way to order anything.
  if (microseconds > 0) std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

}  // namespace outboard
