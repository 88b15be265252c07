// The flow of one step; see pipeline.h.
#include "offload/pipeline.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "offload/stopwatch.h"
#include "offload/weight_reader.h"
#include "outboard/error.h"

namespace outboard {

namespace {
constexpr std::string_view kWho = "Engine";
constexpr size_t kLossScale = 0;
constexpr size_t kFoundInf = 1;
}  // namespace

Pipeline::Pipeline(const EngineOptions& options, std::shared_ptr<Device> device, StateStore& store)
    : options_(options),
      device_(std::move(device)),
      store_(store),
      chunk_elements_(whole_chunk_elements(options.chunk_elements)),
      arena_(options.threads),
      intake_(device_, chunk_elements_),
      update_(arena_),
      weight_return_(device_.get()),
      values_(static_cast<float*>(store.staging(2 * sizeof(float)))) {
  if (device_ != nullptr) clock_ = device_->make_copy_queue();
}

Pipeline::~Pipeline() {
  try {
    // Copies under way use memory that is about to go.
    driver_.drain();
    if (const EventPtr sent = weight_return_.finish()) sent->synchronize();
    if (intake_.queue() != nullptr) intake_.queue()->record()->synchronize();
  } catch (const std::exception&) {
    // The device is gone or broken: nothing is under way on it any more.
  }
}

void Pipeline::add(std::vector<ParameterPtr> batch, SegmentSums sums, ComputeStream stream) {
  driver_.drain();
  std::vector<Parameter*> added;
  for (const ParameterPtr& parameter : batch) {
    parameter->returned.resize((parameter->spec.elements + chunk_elements_ - 1) / chunk_elements_);
    added.push_back(parameter.get());
  }
  const std::lock_guard lock(intake_mutex_);
  read_weights(added, device_.get(), intake_.queue(), stream, arena_);
  for (ParameterPtr& parameter : batch) parameters_.push_back(std::move(parameter));
  if (sums.count > 0) sums_.push_back(std::move(sums));
  std::vector<PlannedParameter> planned;
  for (const ParameterPtr& parameter : parameters_) {
    if (parameter->is_host_updated() && parameter->spec.rule) {
      planned.push_back({parameter->index, parameter->spec.elements});
    }
  }
  chunks_ = plan_chunks(planned, chunk_elements_);
}

void Pipeline::take(size_t index, GradientSource gradient, ComputeStream stream) {
  check_usable();
  const std::lock_guard lock(intake_mutex_);
  if (is_in_step_) {
    fail(ErrorKind::kState, kWho, "gradient of ", parameters_.at(index)->spec.name,
         " arrived between begin_step and finish_step; run backward after the step has ended");
  }
  Parameter& parameter = *parameters_.at(index);
  if (parameter.spec.elements == 0) {
    parameter.contributions = 1;
    return;
  }
  if (!parameter.is_offloaded()) {
    intake_.keep(parameter, std::move(gradient), stream);
    parameter.contributions = 1;
    return;
  }
  if (options_.offload_gradients && parameter.contributions > 0) {
    add_micro_batch(parameter, gradient, stream);
    return;
  }
  const EventPtr was_read = intake_.store(parameter, gradient.data, stream);
  parameter.contributions = 1;
  parameter.contributions_added = 1;
  // Order: the gradient's memory may be reused only after the copy has read it; the driver holds
  // the owner until then.
  driver_.post([was_read, owner = std::move(gradient.owner)] { was_read->synchronize(); });
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
      store_.ensure_accumulators(parameters_);
      update_.accumulate(*shared);
    });
  });
}

void Pipeline::forget(Parameter& parameter) {
  // The driver may still be adding micro-batches from the store that the next gradient will
  // overwrite.
  if (parameter.is_accumulated) driver_.drain();
  const std::lock_guard lock(intake_mutex_);
  parameter.contributions = 0;
  parameter.contributions_added = 0;
  parameter.is_accumulated = false;
  parameter.local_gradient = {};
}

void Pipeline::forget_all() {
  for (const ParameterPtr& parameter : parameters_) {
    if (parameter->has_gradient()) forget(*parameter);
  }
}

bool Pipeline::has_gradient(size_t parameter) const {
  const std::lock_guard lock(intake_mutex_);
  return parameters_.at(parameter)->has_gradient();
}

std::vector<size_t> Pipeline::active_parameters() const {
  return decision_.is_taken ? active_ : std::vector<size_t>{};
}

void Pipeline::check(const StepRequest& request) const {
  if (!(request.max_gradient_norm >= 0)) {
    fail(ErrorKind::kValue, kWho, "max_gradient_norm is ", request.max_gradient_norm,
         "; it must be 0 (off) or positive");
  }
  for (const size_t index : active_) {
    const Parameter& parameter = *parameters_[index];
    const size_t group = request.group_of.empty() ? 0 : request.group_of.at(index);
    if (group >= request.hyper.size()) {
      fail(ErrorKind::kValue, kWho, parameter.spec.name, " is in group ", group, " but ",
           request.hyper.size(), " groups of hyper-parameters were given; give one for each group");
    }
    if (parameter.spec.rule) {
      check_hyper(rule_info(*parameter.spec.rule), request.hyper[group], kWho);
    }
  }
}

EventPtr Pipeline::read(const StepRequest& request, const EventPtr& backward_done) {
  values_[kLossScale] = 1;
  values_[kFoundInf] = 0;
  std::vector<GradientIntake::Value> values;
  for (const SegmentSums& sums : sums_) {
    values.push_back({sums.host, sums.device.get(), sums.count * sizeof(float)});
  }
  const std::pair<size_t, const float*> scalars[] = {{kLossScale, request.loss_scale},
                                                     {kFoundInf, request.found_inf}};
  for (const auto& [slot, source] : scalars) {
    if (source == nullptr) continue;
    if (request.scalars_memory == Memory::kHost) {
      values_[slot] = *source;
    } else {
      values.push_back({&values_[slot], source, sizeof(float)});
    }
  }
  if (values.empty()) return nullptr;
  const std::lock_guard lock(intake_mutex_);
  return intake_.read_values(values, backward_done);
}

StepDecision Pipeline::decide(const StepRequest& request, const EventPtr& is_read,
                              UpdateStart start) {
  if (start == UpdateStart::kWhenGradientArrived) return {};
  if (is_read != nullptr) {
    const Stopwatch watch(update_.times().waiting);
    is_read->synchronize();
  }
  StepEvidence evidence{.loss_scale = values_[kLossScale], .found_inf = values_[kFoundInf] != 0};
  for (const size_t index : active_) {
    Parameter& parameter = *parameters_[index];
    if (parameter.spec.memory == Memory::kHost) update_.sum_of_squares(parameter);
    evidence.sum_of_squares +=
        add_segments({parameter.sums(), norm_segments(parameter.spec.elements)});
  }
  return decide_step(evidence, request.max_gradient_norm, options_.skip_nonfinite);
}

bool Pipeline::begin_step(const StepRequest& request, ComputeStream stream) {
  check_usable();
  if (is_in_step_) {
    fail(ErrorKind::kState, kWho, "begin_step was called twice; call finish_step in between");
  }
  stats_.in_step = 0;
  const Stopwatch watch(stats_.in_step);
  active_.clear();
  for (const ParameterPtr& parameter : parameters_) {
    if (parameter->has_gradient()) active_.push_back(parameter->index);
  }
  check(request);
  for (const size_t index : active_) {
    if (!parameters_[index]->spec.rule) continue;
    const size_t group = request.group_of.empty() ? 0 : request.group_of[index];
    store_.ensure_states(*parameters_[index], request.hyper[group]);
  }
  is_in_step_ = true;
  try {
    backward_done_ = device_ == nullptr ? nullptr : device_->record(stream);
    const EventPtr is_read = read(request, backward_done_);
    const UpdateStart start = update_start(
        options_.schedule, request.max_gradient_norm > 0,
        request.loss_scale != nullptr || request.found_inf != nullptr, options_.skip_nonfinite);
    auto decided = driver_.submit([this, &request, is_read, start] {
      update_.times() = {};
      return decide(request, is_read, start);
    });
    decision_ = decided.get();
    driver_.rethrow_failure();  // an accumulation that failed: its gradient is not whole
  } catch (...) {
    end_step();
    throw;
  }
  // Here and not at the end: whoever computes updates without a rule reads the factor in between.
  stats_.gradient_norm = decision_.norm;
  stats_.clip_factor = decision_.clip_factor;
  if (decision_.is_taken) {
    for (const size_t index : active_) ++parameters_[index]->step;
    driver_.post([this, request] { update_host(request); });
    update_resident(request, stream);
  }
  return decision_.is_taken;
}

RuleScalars Pipeline::scalars(const Parameter& parameter, const StepRequest& request) const {
  const size_t group = request.group_of.empty() ? 0 : request.group_of[parameter.index];
  return rule_info(*parameter.spec.rule)
      .scalars(request.hyper[group], parameter.step, decision_.gradient_scale);
}

void Pipeline::update_host(const StepRequest& request) {
  try {
    weight_return_.begin(backward_done_);
    for (const Chunk& chunk : chunks_) {
      std::vector<PieceUpdate> pieces;
      for (const Piece& piece : chunk.pieces) {
        Parameter& parameter = *parameters_[piece.parameter];
        if (!parameter.has_gradient()) continue;
        pieces.push_back({&parameter, piece.first / chunk_elements_, piece.first, piece.last,
                          intake_.piece(parameter, piece.first), scalars(parameter, request)});
      }
      if (!pieces.empty()) weight_return_.send(update_.update(pieces));
    }
    if (clock_ != nullptr) updates_done_ = clock_->record();
  } catch (const std::exception& error) {
    const std::lock_guard lock(reason_mutex_);
    unusable_reason_ = error.what();
    throw;
  }
}

void Pipeline::update_resident(const StepRequest& request, ComputeStream stream) {
  std::vector<ResidentUpdate> updates;
  for (const size_t index : active_) {
    const Parameter& parameter = *parameters_[index];
    const ParameterSpec& spec = parameter.spec;
    if (parameter.is_host_updated() || !spec.rule) continue;
    updates.push_back({.rule = *spec.rule,
                       .scalars = scalars(parameter, request),
                       .step = static_cast<uint32_t>(parameter.step),
                       .random_key_low = parameter.random_key.low,
                       .random_key_high = parameter.random_key.high,
                       .elements = spec.elements,
                       .gradient = parameter.gradient(),
                       .weight = spec.weight,
                       .master = parameter.master,
                       .type = spec.type,
                       .master_format = spec.master_format,
                       .formats = spec.formats});
    for (size_t i = 0; i < kMaxStates; ++i) {
      updates.back().codes[i] = parameter.states[i].codes;
      updates.back().scales[i] = parameter.states[i].scales;
    }
  }
  if (!updates.empty()) device_->update_resident(stream, updates);
}

void Pipeline::finish_step(ComputeStream stream) {
  if (!is_in_step_) {
    fail(ErrorKind::kState, kWho, "finish_step was called without begin_step; call that first");
  }
  const Stopwatch watch(stats_.in_step);
  weights_back_ = driver_.submit([this] { return weight_return_.finish(); }).get();
  // Order: whatever the caller enqueues next (the forward) reads the weights; it starts after the
  // last copy.
  if (weights_back_ != nullptr) device_->wait(stream, weights_back_);
  stats_.waiting_for_gradients = update_.times().waiting;
  stats_.updating = update_.times().updating;
  ++(decision_.is_taken ? stats_.steps : stats_.skipped_steps);
  for (const size_t index : active_) parameters_[index]->keeps_loaded_master = false;
  end_step();
  driver_.rethrow_failure();
}

void Pipeline::end_step() {
  is_in_step_ = false;
  for (const size_t index : active_) forget(*parameters_[index]);
  active_.clear();
}

double Pipeline::gradient_norm(const StepRequest& request, ComputeStream stream) {
  check_usable();
  active_.clear();
  for (const ParameterPtr& parameter : parameters_) {
    if (parameter->has_gradient()) active_.push_back(parameter->index);
  }
  const EventPtr is_read = read(request, device_ == nullptr ? nullptr : device_->record(stream));
  const StepDecision decision =
      driver_.submit([&] { return decide(request, is_read, UpdateStart::kWhenNormKnown); }).get();
  driver_.rethrow_failure();
  active_.clear();
  return decision.norm;
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
  std::vector<GradientIntake::Value> values{
      {copied_check_sums_, check_sums_.get(), segments * sizeof(float)}};
  for (const SegmentSums& sums : sums_) {
    values.push_back({sums.host, sums.device.get(), sums.count * sizeof(float)});
  }
  EventPtr is_read;
  {
    const std::lock_guard lock(intake_mutex_);
    is_read = intake_.read_values(values, device_->record(stream));
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
  for (size_t first = 0; first < parameter.spec.elements; first += chunk_elements_) {
    intake_.piece(parameter, first).wait();
  }
}

void Pipeline::return_weight(Parameter& parameter) {
  if (parameter.spec.elements == 0) return;
  driver_.post([this, &parameter] {
    weight_return_.begin(backward_done_);
    weight_return_.send(update_.adopt(parameter));
    if (clock_ != nullptr) updates_done_ = clock_->record();
  });
}

void Pipeline::reload_weights(std::span<Parameter* const> parameters, ComputeStream stream) {
  driver_.drain();
  const std::lock_guard lock(intake_mutex_);
  read_weights(parameters, device_.get(), intake_.queue(), stream, arena_);
}

void Pipeline::synchronize() {
  driver_.drain();
  if (weights_back_ != nullptr) weights_back_->synchronize();
  driver_.rethrow_failure();
}

StepStats Pipeline::stats() {
  if (weights_back_ == nullptr) {
    stats_.exposed = stats_.in_step;
    return stats_;
  }
  weights_back_->synchronize();
  backward_done_->synchronize();
  stats_.exposed = std::max(0.0, device_->seconds_between(*backward_done_, *weights_back_));
  if (updates_done_ != nullptr && stats_.steps > 0) {
    updates_done_->synchronize();
    stats_.returning = std::max(0.0, device_->seconds_between(*updates_done_, *weights_back_));
  }
  return stats_;
}

bool Pipeline::is_usable() const {
  const std::lock_guard lock(reason_mutex_);
  return unusable_reason_.empty();
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
