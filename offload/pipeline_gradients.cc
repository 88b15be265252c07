// Gradients between two steps: taking, adding, forgetting and measuring them; see pipeline.h. What
// a step does with them lives in pipeline.cc.
#include <algorithm>
#include <cstring>

#include "offload/pipeline.h"
#include "outboard/error.h"

namespace outboard {

namespace {
constexpr std::string_view kWho = "Engine";
}  // namespace

void Pipeline::take(size_t index, const GradientSource& gradient, ComputeStream stream) {
  check_usable();
  const std::lock_guard lock(intake_mutex_);
  Parameter& parameter = this->parameter(index);
  if (is_in_step_) {
    fail(ErrorKind::kState, kWho, "gradient of ", parameter.spec.name,
         " arrived between begin_step and finish_step; run backward after the step has ended");
  }
  if (parameter.spec.elements == 0) {
    parameter.contributions = 1;
    return;
  }
  if (gradient.data == nullptr) {
    fail(ErrorKind::kValue, kWho, "gradient of ", parameter.spec.name, " (",
         parameter.spec.elements, " elements) is null; give its address, or nothing at all");
  }
  if (parameter.early && parameter.early->is_final) {
    fail(ErrorKind::kState, kWho, "another gradient of ", parameter.spec.name,
         " arrived after its update was made in backward, because the last step had ",
         parameter.expected_uses,
         " of them; wrap all backwards of a step but the last in "
         "accumulate(), or use the schedule next_forward");
  }
  try {
    if (parameter.early) drop_early(parameter);
    parameter.taken_at = ++taken_;
    if (!gradient.is_revision) ++parameter.uses;
    take_in(parameter, gradient, stream);
    if (gradient.is_last && may_start_early(parameter)) start_early(parameter, stream);
  } catch (...) {
    // A part of it may be under way: half a gradient must not be stepped with, and copies must end
    // before the caller takes its memory back.
    abandon(parameter);
    throw;
  }
}

void Pipeline::take_in(Parameter& parameter, const GradientSource& gradient, ComputeStream stream) {
  if (!parameter.is_offloaded()) {
    keep_here(parameter, gradient, stream);
    return;
  }
  // Order: the update of the last step may still read the store (a weight that no forward waited
  // for); this gradient would come between.
  if (progress_.is_busy(parameter)) (void)progress_.wait(parameter);
  if (options_.offload_gradients && parameter.contributions > 0) {
    add_micro_batch(parameter, gradient, stream);
    return;
  }
  const EventPtr begin = trace_.is_on() ? intake_.queue()->record() : nullptr;
  const EventPtr was_read = intake_.store(parameter, gradient.data, stream);
  trace_intake(parameter, begin, was_read);
  parameter.contributions = 1;
  parameter.contributions_added = 1;
  // Order: the gradient's memory may be reused only after the copy has read it; the keeper holds
  // the owner until then. Not the driver: it would start a step only after the last copy.
  keeper_.post([was_read, owner = gradient.owner] { was_read->synchronize(); });
}

void Pipeline::keep_here(Parameter& parameter, const GradientSource& gradient,
                         ComputeStream stream) {
  parameter.local_gradient = gradient;
  parameter.contributions = 1;
  if (!parameter.is_streamed()) return;
  // Order: the sums of the last step have been copied: begin_step() waited for them.
  intake_.measure(parameter, stream);
  parameter.gradient_ready = device_->record(stream);
}

void Pipeline::trace_intake(const Parameter& parameter, const EventPtr& begin,
                            const EventPtr& end) {
  if (begin == nullptr) return;
  trace_.device("gradients down", parameter.spec.name, begin, end,
                parameter.spec.elements * bytes_of(parameter.spec.type));
}

void Pipeline::add_micro_batch(Parameter& parameter, const GradientSource& gradient,
                               ComputeStream stream) {
  if (ring_ == nullptr) {
    ring_ = store_.make_ring(static_cast<size_t>(options_.slots), options_.slot_bytes);
  }
  ++parameter.contributions;
  parameter.is_accumulated = true;
  intake_.stage(parameter, gradient.data, stream, *ring_, [&](GradientInSlot staged) {
    auto shared = std::make_shared<GradientInSlot>(std::move(staged));
    driver_.post([this, shared, owner = gradient.owner] {
      try {
        store_.ensure_accumulators(parameters_);
        adder_.accumulate(*shared);
      } catch (...) {
        shared->parameter->gradient_failure = std::current_exception();
        throw;
      }
    });
  });
}

void Pipeline::abandon(Parameter& parameter) {
  try {
    if (intake_.queue() != nullptr) intake_.queue()->record()->synchronize();
  } catch (const std::exception&) {
    // The device is broken: nothing is under way on it any more.
  }
  drain();
  parameter.early.reset();
  clear_gradient(parameter);
}

void Pipeline::forget(Parameter& parameter) {
  // The driver may still be adding micro-batches from the store that the next gradient will
  // overwrite.
  if (parameter.is_accumulated) driver_.drain();
  const std::lock_guard lock(intake_mutex_);
  clear_gradient(parameter);
  parameter.uses = 0;
  // The last one: what the coming step is made with may be said anew.
  has_early_ = has_early_ && std::ranges::any_of(parameters_, [](const ParameterPtr& other) {
                 return other->early.has_value();
               });
}

bool Pipeline::owns_gradient(size_t index) const {
  const std::lock_guard lock(intake_mutex_);
  const Parameter& parameter = *parameters_.at(index);
  if (parameter.early && parameter.early->is_final) return true;
  return options_.offload_gradients && parameter.is_offloaded() && parameter.has_gradient();
}

void Pipeline::clear_gradient(Parameter& parameter) {
  if (parameter.early) {
    drop_early(parameter);
    // Made in place already: it stays, and counts.
    if (parameter.early->is_final && !parameter.gradient_failure) ++parameter.step;
    parameter.early.reset();
  }
  parameter.gradient_ready = nullptr;
  parameter.contributions = 0;
  parameter.contributions_added = 0;
  parameter.is_accumulated = false;
  parameter.local_gradient = {};
  parameter.gradient_failure = nullptr;
}

void Pipeline::forget_all() {
  for (const ParameterPtr& parameter : parameters_) {
    if (parameter->has_gradient()) forget(*parameter);
    parameter->uses = 0;
  }
}

void Pipeline::note_active() {
  const std::lock_guard lock(intake_mutex_);
  active_.clear();
  for (const ParameterPtr& parameter : parameters_) {
    if (parameter->has_gradient()) active_.push_back(parameter->index);
  }
}

bool Pipeline::has_gradient(size_t parameter) const {
  const std::lock_guard lock(intake_mutex_);
  return parameters_.at(parameter)->has_gradient();
}

double Pipeline::gradient_norm(const StepRequest& request, ComputeStream stream) {
  check_usable();
  if (is_in_step_) {
    fail(ErrorKind::kState, kWho, "gradient_norm was called between begin_step and finish_step; ",
         "stats() has the norm of the step under way");
  }
  note_active();
  measure_resident(stream);
  const EventPtr is_read = read(request, stream);
  const StepDecision decision =
      driver_.submit([&] { return decide(request, is_read, UpdateStart::kWhenNormKnown); }).get();
  rethrow_gradient_failure();
  active_.clear();
  return decision.norm;
}

void Pipeline::measure_resident(ComputeStream stream) {
  const std::lock_guard lock(intake_mutex_);
  for (const size_t index : active_) {
    const Parameter& parameter = *parameters_[index];
    if (parameter.has_host_state() || parameter.spec.elements == 0) continue;
    intake_.measure(parameter, stream);
  }
}

std::vector<size_t> Pipeline::changed_gradients(std::span<const SentGradient> sent,
                                                ComputeStream stream) {
  std::vector<size_t> changed;
  size_t segments = 0;
  for (const SentGradient& gradient : sent) {
    segments += norm_segments(parameters_.at(gradient.parameter)->spec.elements);
  }
  if (segments == 0) return changed;
  if (segments > check_segments_) {
    check_sums_ = device_->allocate(segments * sizeof(float));
    copied_check_sums_ = static_cast<float*>(store_.staging(segments * sizeof(float)));
    check_segments_ = segments;
  }
  auto* next = static_cast<float*>(check_sums_.get());
  for (const SentGradient& gradient : sent) {
    const ParameterSpec& spec = parameters_[gradient.parameter]->spec;
    device_->sum_of_squares(stream, gradient.data, spec.type, spec.elements, next);
    next += norm_segments(spec.elements);
  }
  std::vector<GradientIntake::Value> values = sums_to_read();
  values.push_back({copied_check_sums_, static_cast<const float*>(check_sums_.get()), segments});
  EventPtr is_read;
  {
    const std::lock_guard lock(intake_mutex_);
    is_read = intake_.read_values(values, stream);
  }
  is_read->synchronize();
  const float* now = copied_check_sums_;
  for (const SentGradient& gradient : sent) {
    const Parameter& parameter = *parameters_[gradient.parameter];
    const size_t count = norm_segments(parameter.spec.elements);
    if (std::memcmp(now, parameter.copied_sums, count * sizeof(float)) != 0) {
      changed.push_back(gradient.parameter);
    }
    now += count;
  }
  return changed;
}

void Pipeline::wait_gradient(Parameter& parameter) {
  // The image is about to be rewritten by the caller; its last return may still be reading it.
  for (const EventPtr& returned : parameter.returned) {
    if (returned != nullptr) returned->synchronize();
  }
  for (const GradientOnHost& piece : intake_.pieces(parameter)) piece.wait();
}

}  // namespace outboard
