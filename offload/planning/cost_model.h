// What the planner's cost model offers beside include/outboard/plan.h: per-element costs and the
// checks of a request. The model and its formula are in cost_model.cc; no choice is made here.
#ifndef OUTBOARD_OFFLOAD_PLANNING_COST_MODEL_H_
#define OUTBOARD_OFFLOAD_PLANNING_COST_MODEL_H_

#include "outboard/engine.h"
#include "outboard/plan.h"

namespace outboard {

/// What the planner has to know of a parameter that an engine will get. Without a rule it has no
/// state.
[[nodiscard]] ParameterToPlan parameter_to_plan(const ParameterSpec& spec);

/// Bytes per element that an update reads and writes where it runs: gradient, full-precision
/// weight, state.
[[nodiscard]] double update_traffic(const ParameterToPlan& parameter);

/// Bytes per element beside the weight: what a resident parameter keeps on the device and a
/// streamed one moves each way.
[[nodiscard]] double stream_bytes(const ParameterToPlan& parameter);

/// Whether updates are made before it is known that they count.
[[nodiscard]] bool speculates(const PlanRequest& request, Schedule schedule);

/// Below this share of an iteration, exposed time bounds nothing.
inline constexpr double kExposedShare = 1.0 / 20;

/// What is busy longest for the step, whether or not it is waited for.
[[nodiscard]] Bound busiest(const Prediction& prediction);

/// Throws Error(kValue) for what cannot be planned.
void check_request(const PlanRequest& request, const Machine& machine);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_PLANNING_COST_MODEL_H_
