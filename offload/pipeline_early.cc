// Updates that begin in backward, before the step that they belong to: when they may, and what the
// step does with them; see pipeline.h. In the order of an update's life.
#include <algorithm>

#include "offload/pipeline.h"
#include "outboard/error.h"

namespace outboard {

void Pipeline::announce(const StepRequest& request, ComputeStream stream) {
  if (schedule_ != Schedule::kInBackward || options_.poison_in_flight || !is_usable()) return;
  if (has_early_) return;  // a second forward of the same step: what has begun stays as it is
  const UpdateStart start =
      update_start(request.max_gradient_norm > 0, has_loss_scale_, options_.skip_nonfinite);
  Announced announced{.request = request,
                      .gradient_scale = 1 / last_loss_scale_,
                      .start = early_start(schedule_, start, options_.offload_gradients)};
  if (announced.start == EarlyStart::kTentative) {
    if (!acceptance_.allows_guess()) announced.start = EarlyStart::kNot;
    // Before the backward, whose gradients might take the memory, and on the caller's thread.
    else if (!store_.ensure_second_copies(parameters_))
      announced.start = EarlyStart::kNot;
  }
  // States may be longer than at the last step: their format has changed.
  if (announced.start != EarlyStart::kNot && stream_ != nullptr) reserve_slots(stream);
  const std::lock_guard lock(intake_mutex_);
  if (announced.start == EarlyStart::kTentative && stream_ != nullptr) {
    stream_->after(device_->record(stream));
  }
  announced_ = std::move(announced);
}

bool Pipeline::may_start_early(const Parameter& parameter) const {
  if (!announced_ || announced_->start == EarlyStart::kNot || !parameter.spec.rule) return false;
  if (parameter.expected_uses == 0 || parameter.uses != parameter.expected_uses) return false;
  const bool is_final = announced_->start == EarlyStart::kFinal;
  if (parameter.is_streamed()) {
    if (!is_final && parameter.shadow == nullptr) return false;
  } else if (!parameter.is_offloaded() || !is_final) {
    return false;  // the host's kernels write where they read: nothing could be dropped
  }
  const StepRequest& request = announced_->request;
  const size_t group = group_of(request, parameter.index);
  return group < request.hyper.size() && has_states(parameter, request.hyper[group]);
}

void Pipeline::start_early(Parameter& parameter, ComputeStream stream) {
  const bool is_final = announced_->start == EarlyStart::kFinal;
  parameter.early.emplace(EarlyUpdate{.is_final = is_final});
  has_early_ = true;
  ++stats_.early_updates;
  const int64_t step = parameter.step + 1;
  parameter.scalars = scalars(parameter, announced_->request, step, announced_->gradient_scale);
  // Order: the caller's stream has come past every use of the weight that leads to this gradient.
  const EventPtr weight_is_free = device_->record(stream);
  if (!parameter.is_streamed()) {
    if (parameter.is_accumulated) {
      // Behind the micro-batches that the driver still has to add.
      driver_.post([this, &parameter, step, weight_is_free] {
        if (!parameter.gradient_failure) push_host(parameter, step, true, weight_is_free);
      });
    } else {
      push_host(parameter, step, false, weight_is_free);
    }
    return;
  }
  std::vector<StreamWorkPtr> works =
      stream_works(parameter, step, is_final ? weight_is_free : nullptr);
  if (is_final) {
    progress_.begin(parameter, works.size());
  } else {
    for (const StreamWorkPtr& work : works) {
      work->to = parameter.second;
      work->shadow = static_cast<std::byte*>(parameter.shadow.get()) +
                     work->update.element_offset * bytes_of(parameter.spec.type);
      work->is_accepted = false;
    }
  }
  for (const StreamWorkPtr& work : works) stream_->push(work);
  parameter.early->works = std::move(works);
}

void Pipeline::drop_early(Parameter& parameter) {
  EarlyUpdate& early = *parameter.early;
  if (early.is_void || early.is_final) return;
  early.is_void = true;
  ++stats_.dropped_updates;
  if (stream_ != nullptr) stream_->cancel(early.works);
}

bool Pipeline::accepts_early(const Parameter& parameter, const StepRequest& request) const {
  if (!parameter.early || parameter.early->is_void) return false;
  if (parameter.early->is_final) return true;
  const auto& then = announced_->request;
  return announced_->gradient_scale == decision_.gradient_scale &&
         then.hyper[group_of(then, parameter.index)] ==
             request.hyper[group_of(request, parameter.index)];
}

void Pipeline::accept_early(Parameter& parameter, const EventPtr& weight_is_free) {
  EarlyUpdate& early = *parameter.early;
  if (!early.is_final) {
    std::swap(parameter.master, parameter.second.master);
    std::swap(parameter.states, parameter.second.states);
    progress_.begin(parameter, early.works.size());
    stream_->accept(early.works, weight_is_free);
  }
  parameter.early.reset();
}

void Pipeline::check_finals(const StepRequest& request) const {
  if (!has_early_) return;
  const bool needs_norm = request.max_gradient_norm > 0 || request.loss_scale != nullptr ||
                          request.found_inf != nullptr;
  bool has_finals = false, has_changed = false;
  for (const ParameterPtr& parameter : parameters_) {
    if (!parameter->early || !parameter->early->is_final) continue;
    has_finals = true;
    const auto& then = announced_->request;
    has_changed = has_changed || then.hyper[group_of(then, parameter->index)] !=
                                     request.hyper[group_of(request, parameter->index)];
  }
  if (!has_changed && !(has_finals && needs_norm)) return;
  fail(ErrorKind::kState, "Engine",
       "updates were made in backward, without a norm to wait for, and ",
       needs_norm ? "this step has clipping or a loss scale, which was not announced"
                  : "hyper-parameters have changed since the forward",
       "; set them before the forward, or use the schedule next_forward");
}

}  // namespace outboard
