// The flow of one step; see pipeline.h.
#include "offload/pipeline.h"

#include <algorithm>
#include <cmath>

#include "offload/stopwatch.h"
#include "offload/weight_reader.h"
#include "outboard/error.h"

namespace outboard {

namespace {
constexpr std::string_view kWho = "Engine";
constexpr size_t kLossScale = 0;
constexpr size_t kFoundInf = 1;

size_t group_of(const StepRequest& request, size_t parameter) {
  return request.group_of.empty() ? 0 : request.group_of[parameter];
}
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

// Copies under way use memory that is about to go.
Pipeline::~Pipeline() { settle(); }

void Pipeline::drain() {
  driver_.drain();
  keeper_.drain();
}

void Pipeline::rethrow_failure() {
  driver_.rethrow_failure();
  keeper_.drain();
  keeper_.rethrow_failure();
}

void Pipeline::settle() {
  drain();
  for (CopyQueue* const queue : {weight_return_.queue(), intake_.queue()}) {
    try {
      if (queue != nullptr) queue->record()->synchronize();
    } catch (const std::exception&) {
      // The device is gone or broken: nothing is under way on it any more.
    }
  }
}

Parameter& Pipeline::parameter(size_t index) {
  if (index >= parameters_.size()) {
    fail(ErrorKind::kValue, kWho, "parameter ", index, " of ", parameters_.size(),
         "; give an index that add_parameters() returned");
  }
  return *parameters_[index];
}

void Pipeline::add(std::vector<ParameterPtr> batch, SegmentSums sums, ComputeStream stream) {
  const std::lock_guard lock(intake_mutex_);
  drain();
  std::vector<Parameter*> added;
  for (const ParameterPtr& parameter : batch) {
    parameter->returned.resize((parameter->spec.elements + chunk_elements_ - 1) / chunk_elements_);
    added.push_back(parameter.get());
  }
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
  for (const size_t index : active_) {
    // Said once already, perhaps to a call that only wanted the norm; the sum stays broken.
    if (parameters_[index]->gradient_failure) {
      std::rethrow_exception(parameters_[index]->gradient_failure);
    }
  }
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
    store_.ensure_states(*parameters_[index], request.hyper[group_of(request, index)]);
  }
  is_in_step_ = true;
  try {
    updates_done_ = nullptr;
    const UpdateStart start = update_start(
        options_.schedule, request.max_gradient_norm > 0,
        request.loss_scale != nullptr || request.found_inf != nullptr, options_.skip_nonfinite);
    if (start == UpdateStart::kWhenNormKnown) measure_resident(stream);
    backward_done_ = device_ == nullptr ? nullptr : device_->record(stream);
    // Sums that nobody waits for are not copied: the next backward may already overwrite them.
    const EventPtr is_read =
        start == UpdateStart::kWhenNormKnown ? read(request, backward_done_) : nullptr;
    auto decided = driver_.submit([this, &request, is_read, start] {
      update_.times() = {};
      return decide(request, is_read, start);
    });
    decision_ = decided.get();
    driver_.rethrow_failure();  // an accumulation that failed: its gradient is not whole
    if (start == UpdateStart::kWhenNormKnown) rethrow_failure();  // every copy is done
  } catch (...) {
    settle();  // sums may be under way that the next backward will overwrite
    end_step();
    throw;
  }
  // Here and not at the end: whoever computes updates without a rule reads the factor in between.
  stats_.gradient_norm = decision_.norm;
  stats_.clip_factor = decision_.clip_factor;
  if (decision_.is_taken) start_updates(request, stream);
  return decision_.is_taken;
}

void Pipeline::start_updates(const StepRequest& request, ComputeStream stream) {
  for (const size_t index : active_) ++parameters_[index]->step;
  try {
    driver_.post([this, request] { update_host(request); });
    update_resident(request, stream);
  } catch (const std::exception& error) {
    break_off(error);
    throw;
  }
}

void Pipeline::break_off(const std::exception& error) {
  settle();  // no later work waits for the weights that were sent, and the caller may free them
  if (decision_.is_taken) mark_unusable(error);
  end_step();
}

void Pipeline::mark_unusable(const std::exception& error) {
  const std::lock_guard lock(reason_mutex_);
  if (unusable_reason_.empty()) unusable_reason_ = error.what();
}

RuleScalars Pipeline::scalars(const Parameter& parameter, const StepRequest& request) const {
  return rule_info(*parameter.spec.rule)
      .scalars(request.hyper[group_of(request, parameter.index)], parameter.step,
               decision_.gradient_scale);
}

void Pipeline::prepare(const Chunk& chunk, const StepRequest& request) {
  std::vector<WholeGradient> measured;
  for (const Piece& piece : chunk.pieces) {
    Parameter& parameter = *parameters_[piece.parameter];
    if (piece.first > 0 || !parameter.has_gradient()) continue;
    parameter.scalars = scalars(parameter, request);
    if (rule_info(*parameter.spec.rule).with_norms == nullptr) continue;
    measured.push_back({&parameter, intake_.pieces(parameter)});
  }
  // Order: chunks hold a parameter's pieces from its first element on, so its norms are those of
  // weights of which none has been updated yet.
  if (!measured.empty()) update_.measure(measured);
}

void Pipeline::update_host(const StepRequest& request) {
  try {
    weight_return_.begin(backward_done_);
    for (const Chunk& chunk : chunks_) {
      prepare(chunk, request);
      std::vector<PieceUpdate> pieces;
      for (const Piece& piece : chunk.pieces) {
        Parameter& parameter = *parameters_[piece.parameter];
        if (!parameter.has_gradient()) continue;
        pieces.push_back({&parameter, piece.first / chunk_elements_, piece.first, piece.last,
                          intake_.piece(parameter, piece.first), parameter.scalars});
      }
      if (!pieces.empty()) weight_return_.send(update_.update(pieces));
    }
    if (clock_ != nullptr) updates_done_ = clock_->record();
  } catch (const std::exception& error) {
    mark_unusable(error);
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
  try {
    weights_back_ = driver_.submit([this] { return weight_return_.finish(); }).get();
    // Order: whatever the caller enqueues next (the forward) reads the weights; it starts after the
    // last copy.
    if (weights_back_ != nullptr) device_->wait(stream, weights_back_);
  } catch (const std::exception& error) {
    break_off(error);
    driver_.rethrow_failure();  // the first failure, if this one only followed from it
    throw;
  }
  stats_.waiting_for_gradients = update_.times().waiting;
  stats_.updating = update_.times().updating;
  ++(decision_.is_taken ? stats_.steps : stats_.skipped_steps);
  for (const size_t index : active_) parameters_[index]->keeps_loaded_master = false;
  end_step();
  rethrow_failure();
}

void Pipeline::end_step() {
  is_in_step_ = false;
  for (const size_t index : active_) forget(*parameters_[index]);
  active_.clear();
}

void Pipeline::return_weight(Parameter& parameter) {
  if (parameter.spec.elements == 0) return;
  driver_.post([this, &parameter] {
    try {
      weight_return_.begin(backward_done_);
      weight_return_.send(update_.adopt(parameter));
      if (clock_ != nullptr) updates_done_ = clock_->record();
    } catch (const std::exception& error) {
      mark_unusable(error);
      throw;
    }
  });
}

void Pipeline::reload_weights(std::span<Parameter* const> parameters, ComputeStream stream) {
  const std::lock_guard lock(intake_mutex_);
  drain();
  read_weights(parameters, device_.get(), intake_.queue(), stream, arena_);
}

void Pipeline::synchronize() {
  driver_.drain();
  if (weights_back_ != nullptr) weights_back_->synchronize();
  rethrow_failure();
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
