// Sentences about a plan; see plan_text.h.
#include "offload/planning/plan_text.h"

#include <array>
#include <cmath>
#include <cstdio>

#include "offload/planning/cost_model.h"

namespace outboard {
namespace {

std::string formatted(const char* format, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

std::string seconds(double value) { return formatted("%.0f ms", value * 1e3); }
std::string gigabytes(size_t bytes) {
  return formatted("%.2f GB", static_cast<double>(bytes) * 1e-9);
}
std::string percent(double share) { return formatted("%.0f %%", share * 100); }

std::string schedule_sentence(const PlanRequest& request, const std::vector<Plan>& candidates,
                              size_t best) {
  const Plan& plan = candidates[best];
  std::string text = request.schedule ? "in schedule " : "chose schedule ";
  text.append(word_for(plan.schedule)).append(request.schedule ? ", as asked: " : ": ");
  text += seconds(plan.prediction.iteration_s) + " an iteration are expected, " +
          seconds(plan.prediction.exposed_s) + " of it waiting for the update";
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (i == best) continue;
    text.append("; ").append(word_for(candidates[i].schedule)).append(" would take ");
    text += seconds(candidates[i].prediction.iteration_s);
    if (!candidates[i].fits && plan.fits) text += " and does not fit";
  }
  if (!request.schedule && !request.is_attached) {
    text += "; next_forward and in_backward need an attached model";
  }
  return text;
}

std::string placement_sentence(const PlanRequest& request, const Plan& plan) {
  std::array<double, 3> elements{};
  double all = 0;
  for (size_t i = 0; i < plan.placements.size(); ++i) {
    const auto count = static_cast<double>(request.parameters[i].elements);
    elements.at(static_cast<size_t>(plan.placements[i])) += count;
    all += count;
  }
  std::string text = "of the elements ";
  bool is_first = true;
  for (const Placement placement : {Placement::kResident, Placement::kHost, Placement::kStreamed}) {
    const double count = elements.at(static_cast<size_t>(placement));
    if (count < 0.005 * all) continue;  // norms and biases
    text += (is_first ? "" : ", ") + percent(count / all) + " are ";
    text.append(word_for(placement));
    is_first = false;
  }
  const Prediction& prediction = plan.prediction;
  text += "; the link is busy for " + seconds(prediction.link_s) + ", the CPU for " +
          seconds(prediction.cpu_s) + ", host memory for " + seconds(prediction.host_memory_s);
  return text;
}

std::string bound_sentence(const Plan& plan) {
  std::string text = "bounded by ";
  text.append(word_for(plan.bound));
  switch (plan.bound) {
    case Bound::kCompute:
      return text + ": the update hides behind forward and backward";
    case Bound::kLink:
      return text + ": fewer bytes of state or more resident parameters would help";
    case Bound::kHostMemory:
      return text + ": fewer bytes of state, streaming or more resident parameters would help";
    case Bound::kCpu:
      break;
  }
  return text + ": more threads, streaming or more resident parameters would help";
}

std::string speculation_sentence(const Plan& plan) {
  std::string text =
      "updates in backward are speculative, because the step depends on all gradients: second "
      "copies take " +
      gigabytes(plan.bytes.host_speculation) + " of host memory";
  const size_t device = plan.bytes.device_gradients + plan.bytes.device_shadows;
  if (device > 0) {
    text += ", gradients and new weights " + gigabytes(device) + " of device memory";
  }
  return text;
}

std::string budget_sentence(const char* where, size_t held, size_t budget, const char* remedy) {
  return std::string("does not fit: it needs ") + gigabytes(held) + " of " + where +
         " memory, the budget is " + gigabytes(budget) + "; " + remedy;
}

}  // namespace

std::vector<std::string> reasons_for(const PlanRequest& request,
                                     const std::vector<Plan>& candidates, size_t best) {
  const Plan& plan = candidates[best];
  std::vector<std::string> reasons = {schedule_sentence(request, candidates, best),
                                      placement_sentence(request, plan), bound_sentence(plan)};
  if (plan.is_speculative) {
    reasons.push_back(speculation_sentence(plan));
  }
  if (plan.bytes.host() > request.host_bytes) {
    reasons.push_back(
        budget_sentence("host", plan.bytes.host(), request.host_bytes,
                        "take a smaller state format, or keep more of the state on the device"));
  }
  if (plan.bytes.device() > request.device_bytes) {
    reasons.push_back(
        budget_sentence("device", plan.bytes.device(), request.device_bytes,
                        "lower device_state_bytes, or take another placement or schedule"));
  }
  return reasons;
}

}  // namespace outboard
