// What a step hands to the lanes and to the device: pieces of parameters with all that their
// updates need; see pipeline.h.
#include <algorithm>
#include <cstddef>

#include "offload/pipeline.h"
#include "outboard/error.h"

namespace outboard {

namespace {

constexpr std::string_view kWho = "Engine";

// Empty parameters have none, and want none.
bool lacks_states(const Parameter& parameter, std::span<const double> hyper) {
  return parameter.spec.elements > 0 && !has_states(parameter, hyper);
}

}  // namespace

RuleScalars Pipeline::scalars(const Parameter& parameter, const StepRequest& request, int64_t step,
                              double gradient_scale) const {
  return rule_info(*parameter.spec.rule)
      .scalars(request.hyper[group_of(request, parameter.index)], step, gradient_scale);
}

void Pipeline::start_updates(const StepRequest& request, UpdateStart start, ComputeStream stream) {
  const bool has_arrived = start == UpdateStart::kWhenNormKnown;
  host_.reset_times();
  try {
    const EventPtr weight_is_free =
        options_.poison_in_flight ? poison_weights(stream) : backward_done_;
    const std::lock_guard lock(intake_mutex_);
    for (const size_t index : in_order_of_coming()) {
      Parameter& parameter = *parameters_[index];
      ++parameter.step;
      if (!parameter.spec.rule || parameter.spec.elements == 0) continue;
      if (accepts_early(parameter, request)) {
        accept_early(parameter, weight_is_free);
        continue;
      }
      if (parameter.early) drop_early(parameter);
      if (parameter.spec.placement == Placement::kResident) continue;
      parameter.scalars = scalars(parameter, request, parameter.step, decision_.gradient_scale);
      if (parameter.is_streamed()) {
        push_streamed(parameter, weight_is_free);
      } else {
        push_host(parameter, parameter.step, has_arrived, weight_is_free);
      }
    }
    update_resident(request, stream);
  } catch (const std::exception& error) {
    break_off(error);
    throw;
  }
}

std::vector<size_t> Pipeline::in_order_of_coming() const {
  std::vector<size_t> order = active_;
  std::ranges::sort(order, {}, [this](size_t index) { return parameters_[index]->taken_at; });
  return order;
}

EventPtr Pipeline::poison_weights(ComputeStream stream) {
  for (const size_t index : active_) {
    Parameter& parameter = *parameters_[index];
    const ParameterSpec& spec = parameter.spec;
    if (!spec.rule || spec.memory == Memory::kHost || !parameter.has_host_state()) continue;
    const size_t bytes = spec.elements * bytes_of(spec.type);
    if (parameter.is_streamed()) {
      device_->copy_on_device(stream, parameter.shadow.get(), spec.weight, bytes);
    }
    device_->poison(stream, spec.weight, bytes);
  }
  return device_ == nullptr ? nullptr : device_->record(stream);
}

void Pipeline::push_host(Parameter& parameter, int64_t step, bool has_arrived,
                         const EventPtr& weight_is_free) {
  const size_t elements = parameter.spec.elements;
  std::vector<PieceUpdate> pieces;
  for (size_t first = 0; first < elements; first += chunk_elements_) {
    pieces.push_back({.parameter = &parameter,
                      .index = first / chunk_elements_,
                      .first = first,
                      .last = std::min(first + chunk_elements_, elements),
                      .arrival = intake_.piece(parameter, first),
                      .gradient = parameter.gradient(),
                      .gradient_type = parameter.gradient_type(),
                      .step = static_cast<uint32_t>(step),
                      .weight_is_free = weight_is_free});
  }
  progress_.begin(parameter, pieces.size());
  if (has_arrived) {
    for (PieceUpdate& piece : pieces) host_.push(std::move(piece));
    return;
  }
  // In the order in which gradients were sent, so that none holds up another that comes before it.
  releaser_.post([this, is_whole = parameter.needs_whole(), pieces = std::move(pieces)] {
    if (is_whole) {
      for (const PieceUpdate& piece : pieces) piece.arrival.wait();
    }
    for (const PieceUpdate& piece : pieces) {
      piece.arrival.wait();
      host_.push(piece);
    }
  });
}

std::vector<StreamWorkPtr> Pipeline::stream_works(Parameter& parameter, int64_t step,
                                                  const EventPtr& weight_is_free) {
  const ParameterSpec& spec = parameter.spec;
  const size_t width = bytes_of(spec.type);
  const size_t piece_elements = stream_piece_elements(parameter);
  std::vector<StreamWorkPtr> works;
  for (size_t first = 0; first < spec.elements; first += piece_elements) {
    auto work = std::make_shared<StreamWork>();
    work->parameter = &parameter;
    work->index = works.size();
    work->update = resident_update(parameter, parameter.scalars, step);
    work->update.elements = std::min(piece_elements, spec.elements - first);
    work->update.element_offset = first;
    work->update.gradient = static_cast<const std::byte*>(work->update.gradient) + first * width;
    work->update.weight = static_cast<std::byte*>(work->update.weight) + first * width;
    work->from = work->to = {parameter.master, parameter.states};
    work->gradient_ready = parameter.gradient_ready;
    work->weight_is_free = weight_is_free;
    work->gradient_owner = parameter.local_gradient.owner;
    works.push_back(std::move(work));
  }
  return works;
}

void Pipeline::push_streamed(Parameter& parameter, const EventPtr& weight_is_free) {
  const std::vector<StreamWorkPtr> works = stream_works(parameter, parameter.step, weight_is_free);
  progress_.begin(parameter, works.size());
  for (const StreamWorkPtr& work : works) {
    if (options_.poison_in_flight) {
      work->is_shadow_filled = true;
      work->shadow = static_cast<std::byte*>(parameter.shadow.get()) +
                     work->update.element_offset * bytes_of(parameter.spec.type);
      work->gradient_ready = weight_is_free;  // later than the gradient, and behind the copy
    }
    stream_->push(work);
  }
}

ResidentUpdate Pipeline::resident_update(const Parameter& parameter, const RuleScalars& scalars,
                                         int64_t step) {
  const ParameterSpec& spec = parameter.spec;
  ResidentUpdate update{.rule = *spec.rule,
                        .scalars = scalars,
                        .step = static_cast<uint32_t>(step),
                        .random_key_low = parameter.random_key.low,
                        .random_key_high = parameter.random_key.high,
                        .elements = spec.elements,
                        .rows = spec.rows,
                        .gradient = parameter.gradient(),
                        .weight = spec.weight,
                        .master = parameter.master,
                        .type = spec.type,
                        .master_format = spec.master_format,
                        .formats = spec.formats};
  for (size_t i = 0; i < kMaxStates; ++i) {
    update.codes[i] = parameter.states[i].codes;
    update.scales[i] = parameter.states[i].scales;
  }
  return update;
}

void Pipeline::update_resident(const StepRequest& request, ComputeStream stream) {
  std::vector<ResidentUpdate> updates;
  // Parameters of one group nearly always share their scalars.
  const Parameter* last = nullptr;
  RuleScalars shared;
  for (const size_t index : active_) {
    const Parameter& parameter = *parameters_[index];
    if (parameter.has_host_state() || !parameter.spec.rule) continue;
    const bool is_as_last = last != nullptr && last->step == parameter.step &&
                            last->spec.rule == parameter.spec.rule &&
                            group_of(request, last->index) == group_of(request, index);
    if (!is_as_last) {
      shared = scalars(parameter, request, parameter.step, decision_.gradient_scale);
    }
    last = &parameter;
    updates.push_back(resident_update(parameter, shared, parameter.step));
  }
  if (!updates.empty()) device_->update_resident(stream, updates);
}

void Pipeline::check_enqueued(const StepRequest& request, const DeviceNumbers& numbers,
                              bool is_captured) const {
  if (request.max_gradient_norm != 0 || request.loss_scale != nullptr ||
      request.found_inf != nullptr) {
    fail(ErrorKind::kValue, kWho,
         "a step with numbers on the device has neither a norm nor a loss ",
         "scale; clip and unscale the gradients before it, or take it with begin_step()");
  }
  for (const size_t index : active_) {
    const Parameter& parameter = *parameters_[index];
    const size_t group = group_of(request, index);
    if (parameter.has_host_state() || !parameter.spec.rule) {
      fail(ErrorKind::kValue, kWho, parameter.spec.name,
           " is not resident or has no rule, and the ",
           "step has its numbers on the device; use Placement::kResident, or begin_step()");
    }
    if (group >= numbers.hyper.size() || numbers.hyper[group] == nullptr ||
        index >= numbers.steps.size() || numbers.steps[index] == nullptr) {
      fail(ErrorKind::kValue, kWho, "there are no hyper-parameters or no step count in device ",
           "memory for ", parameter.spec.name, " of group ", group, "; give both");
    }
    if (is_captured && lacks_states(parameter, request.hyper[group])) {
      fail(ErrorKind::kState, kWho, parameter.spec.name,
           " lacks a state that its hyper-parameters ",
           "ask for, and nothing can be allocated while a graph is captured; take a step before ",
           "the capture");
    }
  }
}

void Pipeline::enqueue_step(const StepRequest& request, const DeviceNumbers& numbers,
                            ComputeStream stream) {
  check_usable();
  if (is_in_step_) {
    fail(ErrorKind::kState, kWho, "enqueue_step was called between begin_step and finish_step; ",
         "call finish_step first");
  }
  note_active();
  check(request);
  const bool is_captured = device_ != nullptr && device_->is_capturing(stream);
  check_enqueued(request, numbers, is_captured);
  std::vector<ResidentUpdate> updates;
  for (const size_t index : active_) {
    Parameter& parameter = *parameters_[index];
    const size_t group = group_of(request, index);
    if (lacks_states(parameter, request.hyper[group])) {
      store_.ensure_states(parameter, request.hyper[group]);
    }
    ResidentUpdate update = resident_update(parameter, {}, 0);
    update.device_step = numbers.steps[index];
    update.device_hyper = numbers.hyper[group];
    updates.push_back(update);
  }
  try {
    if (!updates.empty()) device_->update_resident(stream, updates);
  } catch (const std::exception& error) {
    if (!is_captured) mark_unusable(error);  // what was captured did not run
    end_step();
    throw;
  }
  for (const size_t index : active_) parameters_[index]->keeps_loaded_master = false;
  ++stats_.steps;
  end_step();
}

}  // namespace outboard
