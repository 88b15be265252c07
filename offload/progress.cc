// Counting what is under way; see progress.h.
#include "offload/progress.h"

#include <utility>

namespace outboard {

void Progress::begin(Parameter& parameter, size_t pieces) {
  if (pieces == 0) return;
  const std::lock_guard lock(mutex_);
  if (!std::exchange(parameter.is_unsettled, true)) ++unsettled_;
  parameter.pieces_under_way += pieces;
  pieces_ += pieces;
}

void Progress::end(Parameter& parameter, EventPtr event) {
  {
    const std::lock_guard lock(mutex_);
    --parameter.pieces_under_way;
    --pieces_;
    parameter.weight_current = std::move(event);
  }
  has_ended_.notify_all();
}

void Progress::fail() {
  {
    const std::lock_guard lock(mutex_);
    has_failed_ = true;
  }
  has_ended_.notify_all();
}

void Progress::settle(Parameter& parameter) {
  parameter.weight_current = nullptr;
  if (std::exchange(parameter.is_unsettled, false)) --unsettled_;
}

EventPtr Progress::wait(Parameter& parameter) {
  std::unique_lock lock(mutex_);
  has_ended_.wait(lock, [&] { return parameter.pieces_under_way == 0 || has_failed_; });
  if (parameter.pieces_under_way > 0) return nullptr;
  const EventPtr event = parameter.weight_current;
  if (event != nullptr && !event->is_done()) return event;
  settle(parameter);
  return nullptr;
}

bool Progress::is_busy(const Parameter& parameter) {
  const std::lock_guard lock(mutex_);
  return parameter.is_unsettled;
}

void Progress::wait_all() {
  std::unique_lock lock(mutex_);
  has_ended_.wait(lock, [&] { return pieces_ == 0 || has_failed_; });
}

}  // namespace outboard
