// A machine and models whose iterations have been measured, for tests of the planner.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_MEASURED_MODELS_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_MEASURED_MODELS_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include "outboard/plan.h"

namespace outboard::testing {

inline constexpr double kGB = 1e9;
inline const std::string kEightBit = update_name("AdamW", "8bit", MasterFormat::kSplit);
inline const std::string kFloat = update_name("AdamW", "fp32", MasterFormat::kSplit);
inline constexpr Schedule kSchedules[] = {Schedule::kAtStep, Schedule::kNextForward,
                                          Schedule::kInBackward};
inline constexpr Placement kPlacements[] = {Placement::kResident, Placement::kHost,
                                            Placement::kStreamed};

/// One H200, 16 cores, PCIe 5, as measured.
inline Machine h200() {
  return {.link_down = 55 * kGB,
          .link_up = 55 * kGB,
          .link_duplex = 44 * kGB,
          .host_bandwidth = 140 * kGB,
          .device_bandwidth = 4295 * kGB,
          .flops = 550e12,
          .threads = 14,
          .updates = {{kEightBit, 0.115e-9}, {kFloat, 0.23e-9}}};
}

/// A GPT: a tied embedding over 50,304 tokens, then layers of four matrices. Activations are
/// recomputed, so backward takes three quarters.
inline PlanRequest gpt(size_t hidden, size_t layers, double forward_backward_s) {
  PlanRequest request;
  const auto add = [&](size_t elements) {
    request.parameters.push_back({.elements = elements, .state_bytes = 2.0625});
  };
  add(50304 * hidden);
  for (size_t layer = 0; layer < layers; ++layer) {
    for (const size_t squares : {3, 1, 4, 4}) add(squares * hidden * hidden);
    add(2 * hidden);
  }
  request.update = kEightBit;
  request.forward_s = forward_backward_s / 4;
  request.backward_s = forward_backward_s * 3 / 4;
  return request;
}
inline PlanRequest gpt_2_65() { return gpt(2560, 32, 0.628); }
inline PlanRequest gpt_6_65() { return gpt(4096, 32, 0.713); }

inline PlanRequest with_float_state(PlanRequest request) {
  for (ParameterToPlan& parameter : request.parameters) parameter.state_bytes = 8;
  request.update = kFloat;
  return request;
}

inline double elements_of(const PlanRequest& request) {
  double sum = 0;
  for (const ParameterToPlan& p : request.parameters) sum += static_cast<double>(p.elements);
  return sum;
}

inline double elements_in(const PlanRequest& request, const Plan& plan, Placement placement) {
  double sum = 0;
  for (size_t i = 0; i < plan.placements.size(); ++i) {
    if (plan.placements[i] != placement) continue;
    sum += static_cast<double>(request.parameters[i].elements);
  }
  return sum;
}

inline Prediction uniform(const PlanRequest& request, const Machine& machine, Placement placement,
                          Schedule schedule) {
  return predict(request, machine, std::vector<Placement>(request.parameters.size(), placement),
                 schedule);
}

inline void expect_within(double predicted, double measured, double share) {
  EXPECT_NEAR(predicted, measured, share * measured)
      << "off by " << 100 * (predicted / measured - 1) << " %";
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_MEASURED_MODELS_H_
