// Chooses placements and schedule by the cost model, says why, and corrects the model by what was
// measured. What an iteration costs is cost_model.cc's.
#include "outboard/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "offload/planning/cost_model.h"
#include "offload/planning/plan_text.h"
#include "outboard/error.h"

namespace outboard {
namespace {

// Mixtures of host and streamed that are tried: 0, 1/32, ... of the elements on the host.
constexpr int kMixtures = 32;
// A less simple choice has to be better by this share of the iteration.
constexpr double kWorthwhile = 0.01;
// How far one correction may move a rate.
constexpr double kMaxCorrection = 4;

/// Bytes by which a plan exceeds its budgets.
size_t excess_of(const PlanRequest& request, const PlanBytes& bytes) {
  const auto over = [](size_t held, size_t limit) { return held > limit ? held - limit : 0; };
  return over(bytes.host(), request.host_bytes) + over(bytes.device(), request.device_bytes);
}

/// Seconds that a byte of resident state saves: what the cheaper of the other placements costs.
double value_of_residence(const ParameterToPlan& parameter, const Machine& machine) {
  const double on_link = stream_bytes(parameter) / machine.link_duplex;
  const double on_host = update_traffic(parameter) / machine.host_bandwidth;
  const double device_bytes = stream_bytes(parameter);
  if (device_bytes == 0) return std::numeric_limits<double>::infinity();
  return std::min(on_link, on_host) / device_bytes;
}

/// Residents within the budget, the others kHost. Where a byte saves equally much, the parameters
/// that the forward needs first win: their gradients come last and their updates hide least.
std::vector<Placement> with_residents(const PlanRequest& request, const Machine& machine) {
  const auto& parameters = request.parameters;
  std::vector<Placement> placements(parameters.size(), Placement::kHost);
  if (request.placement == Placement::kResident) {
    std::ranges::fill(placements, Placement::kResident);
    return placements;
  }
  std::vector<size_t> order(parameters.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::greater<>(),
                           [&](size_t i) { return value_of_residence(parameters[i], machine); });
  double left = static_cast<double>(request.device_state_bytes);
  for (const size_t i : order) {
    const ParameterToPlan& parameter = parameters[i];
    const double bytes = static_cast<double>(parameter.elements) * stream_bytes(parameter);
    const bool is_small = parameter.elements < request.min_offload_elements;
    if (!is_small && bytes > left) continue;
    placements[i] = Placement::kResident;
    left = std::max(0.0, left - bytes);
  }
  return placements;
}

/// `on_host` of the offloaded elements stay with the host, spread over the model so that link and
/// CPU have work at the same time; the rest is streamed.
std::vector<Placement> mixed(const PlanRequest& request, std::vector<Placement> placements,
                             double on_host) {
  double seen = 0;
  double given = 0;
  for (size_t i = 0; i < placements.size(); ++i) {
    if (placements[i] == Placement::kResident) continue;
    if (request.parameters[i].elements < request.min_stream_elements) {
      placements[i] = Placement::kHost;
      continue;
    }
    const auto elements = static_cast<double>(request.parameters[i].elements);
    seen += elements;
    const bool stays = given + elements / 2 <= on_host * seen && on_host > 0;
    placements[i] = stays ? Placement::kHost : Placement::kStreamed;
    if (stays) given += elements;
  }
  return placements;
}

/// Whether `plan` should replace `best`: it fits better, or is faster by what makes it worthwhile.
bool is_better(const PlanRequest& request, const Plan& plan, const Plan& best) {
  const size_t excess = excess_of(request, plan.bytes);
  const size_t best_excess = excess_of(request, best.bytes);
  if (excess != best_excess) return excess < best_excess;
  return plan.prediction.iteration_s < best.prediction.iteration_s * (1 - kWorthwhile);
}

/// The best placements for one schedule: all on the host, all streamed, or a mixture, in this order
/// of simplicity.
Plan plan_with(const PlanRequest& request, const Machine& machine, Schedule schedule,
               const std::vector<Placement>& residents) {
  const auto try_share = [&](double on_host) {
    return evaluate(request, machine, mixed(request, residents, on_host), schedule);
  };
  if (request.placement == Placement::kStreamed) return try_share(0);
  Plan best = try_share(1);
  if (request.placement) return best;
  for (int i = 0; i < kMixtures; ++i) {
    Plan plan = try_share(static_cast<double>(i) / kMixtures);
    if (is_better(request, plan, best)) best = std::move(plan);
  }
  return best;
}

std::vector<Schedule> schedules_for(const PlanRequest& request) {
  if (request.schedule) return {*request.schedule};
  if (!request.is_attached) return {Schedule::kAtStep};
  return {Schedule::kAtStep, Schedule::kNextForward, Schedule::kInBackward};
}

/// The request and machine with whatever bounds `bound` scaled by `factor` (of time).
CorrectedModel scaled(const CorrectedModel& model, Bound bound, double factor) {
  CorrectedModel result = model;
  Machine& machine = result.machine;
  switch (bound) {
    case Bound::kCompute:
      result.request.forward_s *= factor;
      result.request.backward_s *= factor;
      break;
    case Bound::kLink:
      machine.link_down /= factor;
      machine.link_up /= factor;
      machine.link_duplex /= factor;
      break;
    case Bound::kHostMemory:
      machine.host_bandwidth /= factor;
      [[fallthrough]];
    case Bound::kCpu:
      for (UpdateSpeed& update : machine.updates) {
        if (update.name == result.request.update) update.seconds_per_element *= factor;
      }
      break;
  }
  return result;
}

/// What was measured by itself, in place of what was assumed.
CorrectedModel with_measured_parts(const PlanRequest& request, const Machine& machine,
                                   const Plan& plan, const MeasuredIteration& measured) {
  CorrectedModel model{request, machine};
  const double assumed = request.accumulation_steps * (request.forward_s + request.backward_s);
  if (measured.forward_backward_s > 0 && assumed > 0) {
    model = scaled(model, Bound::kCompute, measured.forward_backward_s / assumed);
  }
  if (measured.update_s > 0 && plan.prediction.cpu_s > 0) {
    double host_elements = 0;
    for (size_t i = 0; i < plan.placements.size(); ++i) {
      if (plan.placements[i] != Placement::kHost) continue;
      host_elements += static_cast<double>(request.parameters[i].elements);
    }
    const double speed = measured.update_s / host_elements;
    std::erase_if(model.machine.updates,
                  [&](const UpdateSpeed& update) { return update.name == request.update; });
    model.machine.updates.push_back({request.update, speed});
  }
  return model;
}

}  // namespace

std::string update_name(std::string_view rule, std::string_view state_format, MasterFormat master) {
  constexpr std::string_view kMasters[] = {"weight", "split", "fp32", "stochastic", "split8"};
  std::string name(rule);
  name.append(" ").append(state_format).append(" ");
  return name.append(kMasters[static_cast<size_t>(master)]);
}

Plan make_plan(const PlanRequest& request, const Machine& machine) {
  check_request(request, machine);
  const std::vector<Placement> residents = with_residents(request, machine);
  std::vector<Plan> candidates;
  for (const Schedule schedule : schedules_for(request)) {
    candidates.push_back(plan_with(request, machine, schedule, residents));
  }
  size_t best = 0;
  for (size_t i = 1; i < candidates.size(); ++i) {
    if (is_better(request, candidates[i], candidates[best])) best = i;
  }
  candidates[best].reasons = reasons_for(request, candidates, best);
  return candidates[best];
}

Plan evaluate(const PlanRequest& request, const Machine& machine, std::vector<Placement> placements,
              Schedule schedule) {
  Plan plan;
  plan.prediction = predict(request, machine, placements, schedule);
  plan.schedule = schedule;
  plan.bytes = plan_bytes(request, placements, schedule);
  plan.is_speculative = plan.bytes.device_shadows > 0;
  plan.bound = bound_of(plan.prediction);
  plan.fits = excess_of(request, plan.bytes) == 0;
  plan.placements = std::move(placements);
  return plan;
}

CorrectedModel corrected(const PlanRequest& request, const Machine& machine, const Plan& plan,
                         const MeasuredIteration& measured) {
  if (!(std::isfinite(measured.iteration_s) && measured.iteration_s > 0)) {
    fail(ErrorKind::kValue, "planner", "the measured iteration is ", measured.iteration_s,
         " s; give a time above 0");
  }
  const CorrectedModel model = with_measured_parts(request, machine, plan, measured);
  const auto iteration = [&](const CorrectedModel& candidate) {
    return predict(candidate.request, candidate.machine, plan.placements, plan.schedule);
  };
  const Prediction before = iteration(model);
  Bound bound = bound_of(before);
  // Forward and backward were measured: they do not explain more than they took.
  const double exposed = measured.iteration_s - before.compute_s;
  if (measured.forward_backward_s > 0 && exposed >= kExposedShare * measured.iteration_s) {
    bound = busiest(before);
  }
  // Shorter than forward and backward alone: whatever bounds the rest cannot explain it.
  if (measured.iteration_s < before.compute_s) bound = Bound::kCompute;
  // Bisection: an iteration never gets shorter when a rate gets worse.
  double low = 1 / kMaxCorrection;
  double high = kMaxCorrection;
  for (int i = 0; i < 60; ++i) {
    const double factor = std::sqrt(low * high);
    const double predicted = iteration(scaled(model, bound, factor)).iteration_s;
    (predicted < measured.iteration_s ? low : high) = factor;
  }
  return scaled(model, bound, std::sqrt(low * high));
}

ComputeTime compute_time(double parameters, double tokens, double flops,
                         Recomputation recomputation) {
  if (!(flops > 0)) {
    fail(ErrorKind::kValue, "planner", "flops is ", flops,
         "; measure forward and backward, or give the operations per second that they reach");
  }
  const double forward = 2 * parameters * tokens / flops;
  return {forward, recomputation == Recomputation::kActivations ? 3 * forward : 2 * forward};
}

std::string_view word_for(Placement placement) {
  switch (placement) {
    case Placement::kResident:
      return "resident";
    case Placement::kHost:
      return "host";
    case Placement::kStreamed:
      break;
  }
  return "streamed";
}

std::string_view word_for(Schedule schedule) {
  switch (schedule) {
    case Schedule::kAtStep:
      return "at_step";
    case Schedule::kNextForward:
      return "next_forward";
    case Schedule::kInBackward:
      break;
  }
  return "in_backward";
}

std::string_view word_for(Bound bound) {
  switch (bound) {
    case Bound::kCompute:
      return "compute";
    case Bound::kLink:
      return "link";
    case Bound::kHostMemory:
      return "host memory";
    case Bound::kCpu:
      break;
  }
  return "CPU";
}

}  // namespace outboard
