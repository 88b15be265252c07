// The driver thread; see driver.h.
#include "offload/driver.h"

namespace outboard {

Driver::Driver(FailureHandler on_failure)
    : on_failure_(std::move(on_failure)), thread_([this] { run(); }) {}

Driver::~Driver() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  posted_.notify_one();
  thread_.join();
}

void Driver::post(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  posted_.notify_one();
}

void Driver::drain() {
  submit([] {}).get();
}

void Driver::rethrow_failure() {
  std::exception_ptr failure;
  {
    const std::lock_guard lock(mutex_);
    failure = std::exchange(failure_, nullptr);
  }
  if (failure) std::rethrow_exception(failure);
}

void Driver::note_failure() {
  const std::lock_guard lock(mutex_);
  if (!failure_) failure_ = std::current_exception();
}

void Driver::run() {
  for (;;) {
    std::function<void()> work;
    {
      std::unique_lock lock(mutex_);
      posted_.wait(lock, [this] { return is_ending_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    try {
      work();
    } catch (const std::exception& error) {
      if (on_failure_) on_failure_(error);
      note_failure();
    } catch (...) {
      note_failure();
    }
  }
}

}  // namespace outboard
