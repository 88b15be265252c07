// Parameters that change their placement or their states' formats between two steps; see
// pipeline.h.
#include <algorithm>

#include "offload/pipeline.h"
#include "outboard/error.h"

namespace outboard {

namespace {
constexpr std::string_view kWho = "Engine";
}  // namespace

void Pipeline::check_change(const PlacementChange& change) {
  const Parameter& moved = parameter(change.parameter);
  const ParameterSpec& spec = moved.spec;
  const auto refuse = [&](ErrorKind kind, std::string_view why, std::string_view what_to_do) {
    fail(kind, kWho, "the placement of ", spec.name, " cannot change: ", why, "; ", what_to_do);
  };
  if (!spec.rule) {
    refuse(ErrorKind::kValue, "its update is the caller's", "leave it where it is");
  }
  if (spec.memory == Memory::kHost) {
    refuse(ErrorKind::kValue, "its weight is in host memory", "leave it where it is");
  }
  if (spec.placement == Placement::kResident || change.placement == Placement::kResident) {
    refuse(ErrorKind::kValue, "resident parameters stay so, and others do not become resident",
           "choose residents when parameters are added");
  }
  if (is_in_step_ || moved.has_gradient()) {
    refuse(ErrorKind::kState, "a gradient of the coming step was taken",
           "move it after finish_step() and before the next backward");
  }
}

void Pipeline::set_placements(std::span<const PlacementChange> changes, ComputeStream stream) {
  check_usable();
  std::vector<Parameter*> to_host, to_stream;
  for (const PlacementChange& change : changes) {
    {
      const std::lock_guard lock(intake_mutex_);
      check_change(change);
    }
    Parameter& moved = parameter(change.parameter);
    auto& others = change.placement == Placement::kHost ? to_stream : to_host;
    std::erase(others, &moved);  // the last word counts
    if (moved.spec.placement == change.placement) continue;
    auto& list = change.placement == Placement::kHost ? to_host : to_stream;
    if (std::ranges::count(list, &moved) == 0) list.push_back(&moved);
  }
  if (to_host.empty() && to_stream.empty()) return;
  // Order: lanes, keeper and driver have nothing to do any more, and no copy or kernel of theirs
  // runs, so arrays may change hands.
  synchronize();
  const std::lock_guard lock(intake_mutex_);
  if (!to_stream.empty()) {
    ensure_stream_lane();
    size_t bytes = 0;
    for (const Parameter* moved : to_stream) bytes = std::max(bytes, slot_bytes(*moved));
    grow_slots(bytes, stream);
  }
  if (!to_host.empty()) bring_images(to_host, stream);
  // Everything is there: nothing below fails.
  for (Parameter* const moved : to_host) settle_at(*moved, Placement::kHost);
  for (Parameter* const moved : to_stream) settle_at(*moved, Placement::kStreamed);
  store_.drop_images(to_stream);
  const bool is_any_streamed = std::ranges::any_of(
      parameters_, [](const ParameterPtr& parameter) { return parameter->is_streamed(); });
  if (stream_ == nullptr || is_any_streamed) return;
  stream_->release();
  store_.note_ring(0);
}

void Pipeline::bring_images(std::span<Parameter* const> parameters, ComputeStream stream) {
  store_.ensure_images(parameters);
  CopyQueue& queue = *intake_.queue();
  queue.wait(device_->record(stream));
  for (const Parameter* const parameter : parameters) {
    const ParameterSpec& spec = parameter->spec;
    queue.copy_to_host(parameter->host_weight, spec.weight, spec.elements * bytes_of(spec.type));
  }
  queue.record()->synchronize();
}

void Pipeline::set_formats(Parameter& parameter,
                           const std::array<StateFormat, kMaxStates>& formats) {
  synchronize();
  // A guess was made from the states that go, and no further one has a second copy to write to.
  if (announced_) announced_->start = EarlyStart::kNot;
  if (parameter.early) drop_early(parameter);
  store_.remake_states(parameter, formats);
}

void Pipeline::settle_at(Parameter& parameter, Placement placement) const {
  parameter.spec.placement = placement;
  // How many gradients a step sends may be another number there.
  parameter.expected_uses = 0;
  parameter.arrived.clear();
  forget_returns(parameter);
}

}  // namespace outboard
