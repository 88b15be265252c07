// One step, from the request to the return of the caller; see pipeline.h. In the order in which it
// happens; what it hands to the lanes is in pipeline_updates.cc.
#include <algorithm>

#include "offload/pipeline.h"
#include "offload/stopwatch.h"
#include "outboard/error.h"

namespace outboard {

namespace {
constexpr std::string_view kWho = "Engine";
constexpr size_t kLossScale = 0;
constexpr size_t kFoundInf = 1;
}  // namespace

void Pipeline::complete_last_step() {
  // Weights that no forward waited for: unused ones.
  progress_.wait_all();
  check_usable();
}

void Pipeline::check(const StepRequest& request) const {
  if (!(request.max_gradient_norm >= 0)) {
    fail(ErrorKind::kValue, kWho, "max_gradient_norm is ", request.max_gradient_norm,
         "; it must be 0 (off) or positive");
  }
  for (const size_t index : active_) {
    const Parameter& parameter = *parameters_[index];
    if (!request.group_of.empty() && index >= request.group_of.size()) {
      fail(ErrorKind::kValue, kWho, "group_of has ", request.group_of.size(),
           " entries and none for ", parameter.spec.name, "; give one for each parameter");
    }
    const size_t group = group_of(request, index);
    if (group >= request.hyper.size()) {
      fail(ErrorKind::kValue, kWho, parameter.spec.name, " is in group ", group, " but ",
           request.hyper.size(), " groups of hyper-parameters were given; give one for each group");
    }
    if (parameter.spec.rule) {
      check_hyper(rule_info(*parameter.spec.rule), request.hyper[group], kWho);
    }
  }
  check_finals(request);
}

bool Pipeline::begin_step(const StepRequest& request, ComputeStream stream) {
  check_usable();
  if (is_in_step_) {
    fail(ErrorKind::kState, kWho, "begin_step was called twice; call finish_step in between");
  }
  stats_.in_step = 0;
  const Stopwatch watch(stats_.in_step);
  const TraceHostSpan span(&trace_, "step", "begin_step");
  complete_last_step();
  note_late_times();
  note_active();
  check(request);
  for (const size_t index : active_) {
    if (!parameters_[index]->spec.rule) continue;
    store_.ensure_states(*parameters_[index], request.hyper[group_of(request, index)]);
  }
  if (stream_ != nullptr) reserve_slots(stream);
  // Streamed weights that are poisoned have to lie somewhere.
  if (options_.poison_in_flight) store_.ensure_shadows(parameters_);
  is_in_step_ = true;
  const UpdateStart start = update_start(
      request.max_gradient_norm > 0, request.loss_scale != nullptr || request.found_inf != nullptr,
      options_.skip_nonfinite);
  try {
    updates_done_ = weights_back_ = nullptr;
    {
      const std::lock_guard lock(waits_mutex_);
      last_waits_ = std::exchange(waits_, {});
    }
    if (start == UpdateStart::kWhenNormKnown) measure_resident(stream);
    backward_done_ = device_ == nullptr ? nullptr : device_->record(stream);
    // Sums that nobody waits for are not copied: the next backward may already overwrite them.
    const EventPtr is_read = start == UpdateStart::kWhenNormKnown ? read(request, stream) : nullptr;
    auto decided = driver_.submit([this, &request, is_read, start] {
      adder_.times() = {};
      return decide(request, is_read, start);
    });
    decision_ = decided.get();
    driver_.rethrow_failure();  // an accumulation that failed: its gradient is not whole
    if (start == UpdateStart::kWhenNormKnown) rethrow_gradient_failure();  // every copy is done
  } catch (...) {
    settle();  // sums may be under way that the next backward will overwrite
    end_step();
    throw;
  }
  // Here and not at the end: whoever computes updates without a rule reads the factor in between.
  stats_.gradient_norm = decision_.norm;
  stats_.clip_factor = decision_.clip_factor;
  note_decision(request, start);
  if (decision_.is_taken) start_updates(request, start, stream);
  return decision_.is_taken;
}

EventPtr Pipeline::read(const StepRequest& request, ComputeStream stream) {
  values_[kLossScale] = 1;
  values_[kFoundInf] = 0;
  std::vector<GradientIntake::Value> values = sums_to_read();
  const std::pair<size_t, const float*> scalars[] = {{kLossScale, request.loss_scale},
                                                     {kFoundInf, request.found_inf}};
  for (const auto& [slot, source] : scalars) {
    if (source == nullptr) continue;
    if (request.scalars_memory == Memory::kHost) {
      values_[slot] = *source;
    } else {
      values.push_back({&values_[slot], source, 1});
    }
  }
  if (values.empty()) return nullptr;
  const std::lock_guard lock(intake_mutex_);
  return intake_.read_values(values, stream);
}

std::vector<GradientIntake::Value> Pipeline::sums_to_read() const {
  std::vector<GradientIntake::Value> values;
  for (const SegmentSums& sums : sums_) {
    values.push_back({sums.host, static_cast<const float*>(sums.device.get()), sums.count});
  }
  return values;
}

StepDecision Pipeline::decide(const StepRequest& request, const EventPtr& is_read,
                              UpdateStart start) {
  for (const size_t index : active_) {
    // Said once already, perhaps to a call that only wanted the norm; the sum stays broken.
    if (parameters_[index]->gradient_failure) {
      std::rethrow_exception(parameters_[index]->gradient_failure);
    }
  }
  if (start == UpdateStart::kWhenGradientArrived) return {};
  if (is_read != nullptr) {
    const Stopwatch watch(adder_.times().waiting);
    is_read->synchronize();
  }
  StepEvidence evidence{.loss_scale = values_[kLossScale], .found_inf = values_[kFoundInf] != 0};
  for (const size_t index : active_) {
    Parameter& parameter = *parameters_[index];
    if (parameter.spec.memory == Memory::kHost) adder_.sum_of_squares(parameter);
    evidence.sum_of_squares +=
        add_segments({parameter.sums(), norm_segments(parameter.spec.elements)});
  }
  return decide_step(evidence, request.max_gradient_norm, options_.skip_nonfinite);
}

void Pipeline::note_decision(const StepRequest& request, UpdateStart start) {
  has_loss_scale_ = request.loss_scale != nullptr || request.found_inf != nullptr;
  last_loss_scale_ = start == UpdateStart::kWhenNormKnown ? values_[kLossScale] : 1;
  if (!announced_ || schedule_ != Schedule::kInBackward) return;
  bool would_accept = decision_.is_taken &&
                      decision_.gradient_scale == announced_->gradient_scale &&
                      announced_->request.hyper == request.hyper;
  for (const size_t index : active_) {
    const auto& early = parameters_[index]->early;
    would_accept = would_accept && !(early && early->is_void);
  }
  acceptance_.note(would_accept);
}

void Pipeline::note_late_times() {
  if (!std::exchange(has_late_times_, false)) return;
  const HostUpdateTimes times = host_.settled_times();
  stats_.waiting_for_gradients = times.waiting;
  stats_.updating = times.updating;
}

void Pipeline::return_weight(Parameter& parameter) {
  if (parameter.spec.elements == 0) return;
  progress_.begin(parameter, 1);
  host_.adopt(parameter, backward_done_);
}

bool Pipeline::is_waited_for_at_step() const {
  if (schedule_ == Schedule::kAtStep) return true;
  // The caller's own memory: it may write to gradients, and reads weights without asking.
  return std::ranges::any_of(active_, [this](size_t index) {
    const ParameterSpec& spec = parameters_[index]->spec;
    return !spec.rule || spec.memory == Memory::kHost;
  });
}

void Pipeline::wait_for_everything(ComputeStream stream) {
  progress_.wait_all();
  if (clock_ != nullptr) updates_done_ = clock_->record();
  weights_back_ = host_.flush();
  // Order: whatever the caller enqueues next (the forward) reads the weights; it starts after the
  // last copy.
  if (weights_back_ != nullptr) device_->wait(stream, weights_back_);
  if (stream_ == nullptr) return;
  device_->wait(stream, stream_->flush(false));
  weights_back_ = device_->record(stream);
}

void Pipeline::finish_step(ComputeStream stream) {
  if (!is_in_step_) {
    fail(ErrorKind::kState, kWho, "finish_step was called without begin_step; call that first");
  }
  const Stopwatch watch(stats_.in_step);
  const TraceHostSpan span(&trace_, "step", "finish_step");
  const bool waits = is_waited_for_at_step();
  if (waits) {
    try {
      wait_for_everything(stream);
    } catch (const std::exception& error) {
      break_off(error);
      rethrow_failure();  // the first failure, if this one only followed from it
      throw;
    }
    stats_.waiting_for_gradients = adder_.times().waiting + host_.times().waiting;
    stats_.updating = adder_.times().updating + host_.times().updating;
  }
  has_late_times_ = !waits && decision_.is_taken;
  ++(decision_.is_taken ? stats_.steps : stats_.skipped_steps);
  for (const size_t index : active_) parameters_[index]->keeps_loaded_master = false;
  end_step();
  if (waits) rethrow_failure();
}

void Pipeline::end_step() {
  is_in_step_ = false;
  for (const size_t index : active_) {
    Parameter& parameter = *parameters_[index];
    parameter.expected_uses = std::exchange(parameter.uses, 0);
    forget(parameter);
  }
  const std::lock_guard lock(intake_mutex_);
  announced_.reset();
  has_early_ = false;
  active_.clear();
}

void Pipeline::break_off(const std::exception& error) {
  if (decision_.is_taken) mark_unusable(error);
  settle();  // no later work waits for the weights that were sent, and the caller may free them
  end_step();
}

std::vector<size_t> Pipeline::active_parameters() const {
  return decision_.is_taken ? active_ : std::vector<size_t>{};
}

}  // namespace outboard
