// The planner's sentences: what was chosen and why, for people. No figure is computed here that the
// plan does not hold.
#ifndef OUTBOARD_OFFLOAD_PLANNING_PLAN_TEXT_H_
#define OUTBOARD_OFFLOAD_PLANNING_PLAN_TEXT_H_

#include <cstddef>
#include <string>
#include <vector>

#include "outboard/plan.h"

namespace outboard {

/// Sentences about candidates[best], one per choice: schedule, placement, what bounds it,
/// speculation, budgets. The candidates are the best plans of one schedule each.
[[nodiscard]] std::vector<std::string> reasons_for(const PlanRequest& request,
                                                   const std::vector<Plan>& candidates,
                                                   size_t best);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_PLANNING_PLAN_TEXT_H_
