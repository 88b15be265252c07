// What placements and a schedule hold in host and device memory. Seconds are cost_model.cc's.
#include <algorithm>
#include <cmath>

#include "offload/planning/cost_model.h"

namespace outboard {
namespace {

// The ring stays below this, unless two slots alone are larger.
constexpr double kMostRingBytes = 1 << 30;

size_t to_bytes(double bytes) { return static_cast<size_t>(std::llround(bytes)); }

/// What one parameter that is not resident adds.
void add_offloaded(const PlanRequest& request, const ParameterToPlan& parameter,
                   Placement placement, Schedule schedule, PlanBytes& bytes) {
  const size_t weight_bytes = parameter.elements * bytes_of(parameter.type);
  const size_t master_bytes = parameter.elements * bytes_of(parameter.master);
  const size_t state_bytes =
      to_bytes(static_cast<double>(parameter.elements) * parameter.state_bytes);
  const bool is_accumulated = request.accumulation_steps > 1;
  bytes.host_masters += master_bytes;
  bytes.host_state += state_bytes;
  if (placement == Placement::kHost) {
    bytes.host_weights += weight_bytes;
    bytes.host_gradients += weight_bytes;
    if (is_accumulated && request.offload_gradients && parameter.type != DType::kF32) {
      bytes.host_accumulators += 4 * parameter.elements;
    }
    if (!request.offload_gradients) bytes.device_gradients += weight_bytes;
    return;
  }
  const bool is_tentative = speculates(request, schedule);
  const bool goes_at_once = schedule == Schedule::kInBackward && !is_tentative && !is_accumulated;
  if (!goes_at_once) bytes.device_gradients += weight_bytes;
  if (!is_tentative) return;
  bytes.host_speculation += master_bytes + state_bytes;
  bytes.device_shadows += weight_bytes;
}

}  // namespace

bool speculates(const PlanRequest& request, Schedule schedule) {
  return schedule == Schedule::kInBackward && (request.needs_norm || !request.offload_gradients);
}

PlanBytes plan_bytes(const PlanRequest& request, const std::vector<Placement>& placements,
                     Schedule schedule) {
  PlanBytes bytes;
  double longest_slot = 0;
  bool has_host = false;
  for (size_t i = 0; i < placements.size(); ++i) {
    const ParameterToPlan& parameter = request.parameters[i];
    const auto elements = static_cast<double>(parameter.elements);
    if (placements[i] == Placement::kResident) {
      bytes.device_state += to_bytes(elements * stream_bytes(parameter));
      continue;
    }
    add_offloaded(request, parameter, placements[i], schedule, bytes);
    has_host |= placements[i] == Placement::kHost;
    if (placements[i] == Placement::kStreamed) {
      const auto slot = std::min(elements, static_cast<double>(request.stream_elements));
      longest_slot = std::max(longest_slot, slot * stream_bytes(parameter));
    }
  }
  if (longest_slot > 0) {
    const double slots = std::clamp(kMostRingBytes / longest_slot, 2.0,
                                    std::max(2.0, static_cast<double>(request.stream_slots)));
    bytes.device_ring = to_bytes(std::floor(slots) * longest_slot);
  }
  if (has_host && request.offload_gradients && request.accumulation_steps > 1) {
    bytes.host_staging = request.staging_bytes;
  }
  return bytes;
}

}  // namespace outboard
