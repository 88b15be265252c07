// Construction, waiting, reports and failures of the pipeline; see pipeline.h.
#include "offload/pipeline.h"

#include <algorithm>

#include "offload/weight_reader.h"
#include "outboard/error.h"

namespace outboard {

namespace {
constexpr std::string_view kWho = "Engine";

/// The wish for a piece's length, rounded up to what every format's blocks and every norm segment
/// divide.
size_t whole_piece_elements(size_t elements) {
  return round_up(std::max<size_t>(elements, 1), kNormSegmentElements);
}
}  // namespace

Pipeline::Pipeline(const EngineOptions& options, std::shared_ptr<Device> device, StateStore& store)
    : options_(options),
      device_(std::move(device)),
      store_(store),
      schedule_(options.schedule),
      chunk_elements_(whole_piece_elements(options.chunk_elements)),
      stream_elements_(whole_piece_elements(options.stream_elements)),
      arena_(options.threads),
      trace_(device_),
      intake_(device_, chunk_elements_),
      adder_(arena_),
      values_(static_cast<float*>(store.staging(2 * sizeof(float)))),
      host_(arena_, device_.get(), progress_, trace_, chunk_elements_,
            [this](const std::exception& error) { mark_unusable(error); }),
      releaser_([this](const std::exception& error) { mark_unusable(error); }) {
  if (device_ != nullptr) clock_ = device_->make_copy_queue();
}

// Copies under way use memory that is about to go.
Pipeline::~Pipeline() { settle(); }

void Pipeline::drain() {
  driver_.drain();
  keeper_.drain();
  releaser_.drain();
  host_.drain();
  if (stream_ != nullptr) stream_->drain();
}

void Pipeline::rethrow_gradient_failure() {
  driver_.rethrow_failure();  // an accumulation that failed: its gradient is not whole
  keeper_.drain();
  keeper_.rethrow_failure();
}

void Pipeline::rethrow_failure() {
  rethrow_gradient_failure();
  releaser_.drain();
  releaser_.rethrow_failure();
  host_.drain();
  host_.rethrow_failure();
  if (stream_ == nullptr) return;
  stream_->drain();
  stream_->rethrow_failure();
}

void Pipeline::settle() {
  drain();
  for (CopyQueue* const queue : {host_.queue(), intake_.queue()}) {
    try {
      if (queue != nullptr) queue->record()->synchronize();
    } catch (const std::exception&) {
      // The device is gone or broken: nothing is under way on it any more.
    }
  }
  try {
    if (intake_.last_read() != nullptr) intake_.last_read()->synchronize();
  } catch (const std::exception&) {
    // As above; what follows is waited for in any case.
  }
  try {
    if (stream_ != nullptr) stream_->flush(true)->synchronize();
  } catch (const std::exception&) {
    // As above.
  }
}

size_t Pipeline::stream_piece_elements(const Parameter& parameter) const {
  // What is measured is the whole parameter, which then has to be on the device at once.
  return parameter.needs_whole() ? std::max<size_t>(parameter.spec.elements, 1) : stream_elements_;
}

size_t Pipeline::slot_bytes(const Parameter& parameter) const {
  return StreamLane::slot_bytes(
      parameter, std::min(stream_piece_elements(parameter), parameter.spec.elements));
}

void Pipeline::reserve_slots(ComputeStream stream) {
  size_t bytes = 0;
  for (const ParameterPtr& parameter : parameters_) {
    if (parameter->is_streamed()) bytes = std::max(bytes, slot_bytes(*parameter));
  }
  grow_slots(bytes, stream);
}

void Pipeline::grow_slots(size_t bytes, ComputeStream stream) {
  if (bytes <= stream_->slot_bytes()) return;
  stream_->drain();
  store_.note_ring(stream_->reserve(bytes, store_.allocator(), stream));
}

void Pipeline::ensure_stream_lane() {
  if (stream_ != nullptr) return;
  stream_ = std::make_unique<StreamLane>(
      device_, progress_, trace_, static_cast<size_t>(std::max(options_.stream_slots, 2)),
      [this](const std::exception& error) { mark_unusable(error); });
}

void Pipeline::forget_returns(Parameter& parameter) const {
  const size_t piece_elements =
      parameter.is_streamed() ? stream_piece_elements(parameter) : chunk_elements_;
  parameter.returned.assign((parameter.spec.elements + piece_elements - 1) / piece_elements,
                            nullptr);
}

Parameter& Pipeline::parameter(size_t index) {
  if (index >= parameters_.size()) {
    fail(ErrorKind::kValue, kWho, "parameter ", index, " of ", parameters_.size(),
         "; give an index that add_parameters() returned");
  }
  return *parameters_[index];
}

void Pipeline::add(std::vector<ParameterPtr> batch, SegmentSums sums, ComputeStream stream) {
  complete_last_step();
  const std::lock_guard lock(intake_mutex_);
  drain();
  std::vector<Parameter*> added;
  for (const ParameterPtr& parameter : batch) {
    forget_returns(*parameter);
    added.push_back(parameter.get());
    if (parameter->is_streamed()) ensure_stream_lane();
  }
  read_weights(added, device_.get(), intake_.queue(), stream, arena_);
  for (ParameterPtr& parameter : batch) parameters_.push_back(std::move(parameter));
  if (sums.count > 0) sums_.push_back(std::move(sums));
  if (stream_ != nullptr) reserve_slots(stream);
  forget_use_order();
}

void Pipeline::forget_use_order() {
  for (const ParameterPtr& parameter : parameters_) {
    parameter->rank = 2 * parameters_.size() - parameter->index;
  }
}

void Pipeline::set_use_order(std::span<const size_t> order) {
  complete_last_step();
  for (const size_t index : order) (void)parameter(index);
  forget_use_order();
  for (size_t i = order.size(); i-- > 0;) parameters_[order[i]]->rank = i;
}

void Pipeline::set_schedule(Schedule schedule) {
  if (announced_) announced_->start = EarlyStart::kNot;
  schedule_ = schedule;
}

void Pipeline::wait_weights(std::span<const size_t> parameters, ComputeStream stream) {
  if (!is_updating()) return;
  check_usable();
  EventPtr begin;
  for (const size_t index : parameters) {
    Parameter& waited = parameter(index);
    if (!progress_.is_busy(waited)) continue;
    if (begin == nullptr && device_ != nullptr) begin = device_->record(stream);
    const EventPtr current = progress_.wait(waited);
    // Order: whatever the caller enqueues next reads the weight; it starts after the last copy.
    if (current != nullptr) device_->wait(stream, current);
  }
  check_usable();
  if (begin == nullptr) return;
  const EventPtr end = device_->record(stream);
  trace_.device("exposed", "waiting for weights", begin, end);
  const std::lock_guard lock(waits_mutex_);
  waits_.push_back({begin, end});
}

void Pipeline::reload_weights(std::span<Parameter* const> parameters, ComputeStream stream) {
  complete_last_step();
  const std::lock_guard lock(intake_mutex_);
  drain();
  read_weights(parameters, device_.get(), intake_.queue(), stream, arena_);
}

void Pipeline::synchronize() {
  progress_.wait_all();
  if (const EventPtr last = host_.flush(); last != nullptr) last->synchronize();
  if (stream_ != nullptr) stream_->flush(true)->synchronize();
  driver_.drain();
  rethrow_failure();
}

StepStats Pipeline::stats() {
  const std::lock_guard lock(waits_mutex_);
  if (weights_back_ == nullptr) {
    stats_.exposed = device_ == nullptr ? stats_.in_step : 0;
  } else {
    weights_back_->synchronize();
    backward_done_->synchronize();
    stats_.exposed = std::max(0.0, device_->seconds_between(*backward_done_, *weights_back_));
    if (updates_done_ != nullptr && stats_.steps > 0) {
      updates_done_->synchronize();
      stats_.returning = std::max(0.0, device_->seconds_between(*updates_done_, *weights_back_));
    }
  }
  for (const Wait& wait : last_waits_) {
    wait.end->synchronize();
    stats_.exposed += std::max(0.0, device_->seconds_between(*wait.begin, *wait.end));
  }
  return stats_;
}

bool Pipeline::is_usable() const {
  const std::lock_guard lock(reason_mutex_);
  return unusable_reason_.empty();
}

void Pipeline::mark_unusable(const std::exception& error) {
  {
    const std::lock_guard lock(reason_mutex_);
    if (unusable_reason_.empty()) unusable_reason_ = error.what();
  }
  progress_.fail();  // what is missing will never come
}

void Pipeline::check_usable() const {
  const std::lock_guard lock(reason_mutex_);
  if (!unusable_reason_.empty()) {
    fail(ErrorKind::kState, kWho, "an earlier step failed half way (", unusable_reason_,
         "), so weights and state no longer belong together; load a checkpoint into a new "
         "optimizer");
  }
}

}  // namespace outboard
