// The planner's cost model: known iterations of probes, which way figures move when a machine or a
// request changes, bytes, and corrections.
#include "outboard/plan.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "offload/support/measured_models.h"

namespace outboard {
namespace {

using ::outboard::testing::elements_in;
using ::outboard::testing::elements_of;
using ::outboard::testing::expect_within;
using ::outboard::testing::gpt;
using ::outboard::testing::gpt_2_65;
using ::outboard::testing::gpt_6_65;
using ::outboard::testing::h200;
using ::outboard::testing::kEightBit;
using ::outboard::testing::kFloat;
using ::outboard::testing::kGB;
using ::outboard::testing::kPlacements;
using ::outboard::testing::kSchedules;
using ::outboard::testing::uniform;
using ::outboard::testing::with_float_state;

/// What updates started in backward took that nothing can change any more.
struct Probe {
  const char* name;
  PlanRequest request;
  Placement placement;
  double measured_s;
};

std::vector<Probe> probes() {
  return {{"2.65e9, 14 B on the CPU", gpt_2_65(), Placement::kHost, 0.657},
          {"2.65e9, 28 B on the CPU", with_float_state(gpt_2_65()), Placement::kHost, 0.984},
          {"2.65e9, 8-bit state streamed", gpt_2_65(), Placement::kStreamed, 0.651},
          {"6.65e9, 14 B on the CPU", gpt_6_65(), Placement::kHost, 1.188},
          {"6.65e9, 8-bit state streamed", gpt_6_65(), Placement::kStreamed, 0.743}};
}

TEST(Plan, PredictsTheProbesWithinFifteenPercent) {
  for (Probe& probe : probes()) {
    SCOPED_TRACE(probe.name);
    probe.request.needs_norm = false;
    expect_within(
        uniform(probe.request, h200(), probe.placement, Schedule::kInBackward).iteration_s,
        probe.measured_s, 0.15);
  }
}

TEST(Plan, PredictsMeasuredStepsWithinFifteenPercent) {
  // Clipping that fires, everything after backward; fp32 and 8-bit state on two machines of a type.
  Machine machine = h200();
  machine.updates = {{kEightBit, 0.115e-9}, {kFloat, 0.18e-9}};
  PlanRequest request = with_float_state(gpt_2_65());
  expect_within(uniform(request, machine, Placement::kHost, Schedule::kAtStep).iteration_s, 1.091,
                0.15);
  request = gpt(2560, 32, 0.643);
  expect_within(uniform(request, machine, Placement::kHost, Schedule::kAtStep).iteration_s, 0.975,
                0.15);
}

TEST(Plan, TokensGiveTheMeasuredForwardAndBackwardWithinFifteenPercent) {
  const auto seconds = [](double parameters, double tokens) {
    const ComputeTime time =
        compute_time(parameters, tokens, h200().flops, Recomputation::kActivations);
    EXPECT_DOUBLE_EQ(time.backward_s, 3 * time.forward_s);
    return time.forward_s + time.backward_s;
  };
  expect_within(seconds(2.65e9, 16384), 0.628, 0.15);
  expect_within(seconds(6.65e9, 8192), 0.713, 0.15);
  const ComputeTime plain = compute_time(2.65e9, 16384, h200().flops, Recomputation::kNone);
  EXPECT_DOUBLE_EQ(plain.backward_s, 2 * plain.forward_s);
}

TEST(Plan, MoreOfAnythingIsNeverSlower) {
  const std::vector<std::pair<const char*, std::function<void(PlanRequest&, Machine&)>>> better = {
      {"link",
       [](PlanRequest&, Machine& m) { m.link_down *= 2, m.link_up *= 2, m.link_duplex *= 2; }},
      {"duplex", [](PlanRequest&, Machine& m) { m.link_duplex *= 1.2; }},
      {"host memory", [](PlanRequest&, Machine& m) { m.host_bandwidth *= 1.5; }},
      {"CPU",
       [](PlanRequest&, Machine& m) {
         for (auto& u : m.updates) u.seconds_per_element /= 2;
       }},
      {"device", [](PlanRequest&, Machine& m) { m.device_bandwidth *= 2; }},
      {"budget", [](PlanRequest& r, Machine&) { r.device_state_bytes += 4'000'000'000; }},
      {"attach", [](PlanRequest& r, Machine&) { r.is_attached = true; }},
      {"no norm", [](PlanRequest& r, Machine&) { r.needs_norm = false; }},
      {"clipping", [](PlanRequest& r, Machine&) { r.redo_rate /= 2; }}};
  for (PlanRequest request : {gpt_2_65(), gpt_6_65(), with_float_state(gpt_2_65())}) {
    request.redo_rate = 0.5;
    for (const auto& [name, change] : better) {
      for (const Placement placement : {Placement::kHost, Placement::kStreamed}) {
        for (const Schedule schedule : kSchedules) {
          request.placement = placement;
          request.schedule = schedule;
          PlanRequest changed = request;
          Machine machine = h200();
          change(changed, machine);
          EXPECT_LE(make_plan(changed, machine).prediction.iteration_s,
                    make_plan(request, h200()).prediction.iteration_s * 1.0001)
              << "better " << name << ", " << word_for(placement) << ", " << word_for(schedule);
        }
      }
    }
  }
}

TEST(Plan, TheLastGradientsUpdateHasNothingToHideIn) {
  PlanRequest request = gpt_2_65();
  request.needs_norm = false;
  const double last_link_s = static_cast<double>(request.parameters[0].elements) * 4.0625 / 44e9;
  std::vector<Placement> placements(request.parameters.size(), Placement::kStreamed);
  for (const bool is_attached : {false, true}) {
    request.is_attached = is_attached;
    EXPECT_NEAR(predict(request, h200(), placements, Schedule::kInBackward).exposed_s, last_link_s,
                1e-9);
  }
  placements[0] = Placement::kResident;
  EXPECT_LT(predict(request, h200(), placements, Schedule::kInBackward).exposed_s,
            0.2 * last_link_s);
}

TEST(Plan, LongerModelsTakeLonger) {
  for (const Placement placement : kPlacements) {
    for (const Schedule schedule : kSchedules) {
      double before = 0;
      for (const size_t layers : {8, 16, 32, 64}) {
        const double now =
            uniform(gpt(2560, layers, 0.628), h200(), placement, schedule).iteration_s;
        EXPECT_GT(now, before) << word_for(placement) << ", " << word_for(schedule);
        before = now;
      }
    }
  }
}

TEST(Plan, SchedulesHideMoreInTheirOrder) {
  PlanRequest request = gpt_2_65();
  request.is_attached = true;
  for (const Placement placement : {Placement::kHost, Placement::kStreamed}) {
    const double at_step = uniform(request, h200(), placement, Schedule::kAtStep).exposed_s;
    const double forward = uniform(request, h200(), placement, Schedule::kNextForward).exposed_s;
    const double backward = uniform(request, h200(), placement, Schedule::kInBackward).exposed_s;
    EXPECT_LT(forward, at_step);
    if (placement == Placement::kHost) {
      EXPECT_EQ(backward, forward) << "the host cannot begin before the norm is known";
      continue;
    }
    EXPECT_LT(backward, forward);
    EXPECT_GT(backward, 0) << "the last gradient's update has nothing to hide in";
  }
}

TEST(Plan, CountsHostBytesOfEveryPlacement) {
  PlanRequest request = with_float_state(gpt_2_65());
  request.min_offload_elements = 0;
  const auto bytes = [&](Placement placement, Schedule schedule) {
    return plan_bytes(request, std::vector<Placement>(request.parameters.size(), placement),
                      schedule);
  };
  const double n = elements_of(request);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kHost, Schedule::kAtStep).host()), 14 * n);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kHost, Schedule::kInBackward).host()),
                   14 * n)
      << "updates of the host are never tentative";
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kStreamed, Schedule::kAtStep).host()),
                   10 * n);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kStreamed, Schedule::kInBackward).host()),
                   20 * n)
      << "speculation keeps second copies";
  request.needs_norm = false;
  const PlanBytes streamed = bytes(Placement::kStreamed, Schedule::kInBackward);
  EXPECT_DOUBLE_EQ(static_cast<double>(streamed.host()), 10 * n);
  EXPECT_EQ(streamed.device_gradients + streamed.device_shadows, 0u);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kResident, Schedule::kAtStep).device()),
                   10 * n);
}

TEST(Plan, TheRingIsBounded) {
  PlanRequest request = gpt_6_65();
  const auto ring = [&] {
    const std::vector<Placement> streamed(request.parameters.size(), Placement::kStreamed);
    return plan_bytes(request, streamed, Schedule::kNextForward).device_ring;
  };
  const size_t slot = request.stream_elements * 65 / 16;
  EXPECT_EQ(ring(), 16 * slot);
  request.stream_elements = size_t{64} << 20;
  EXPECT_EQ(ring(), 3 * (request.stream_elements * 65 / 16)) << "four would be more than 1 GiB";
  request.stream_elements = size_t{192} << 20;
  EXPECT_EQ(ring(), 2 * (request.stream_elements * 65 / 16)) << "two have to be";
}

TEST(Plan, SpeculationKeepsGradientsAndNewWeightsOnTheDevice) {
  const PlanRequest request = gpt_2_65();
  const std::vector<Placement> streamed(request.parameters.size(), Placement::kStreamed);
  const PlanBytes bytes = plan_bytes(request, streamed, Schedule::kInBackward);
  const double n = elements_of(request);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes.device_gradients), 2 * n);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes.device_shadows), 2 * n);
}

TEST(Plan, CorrectionMeetsTheMeasuredIteration) {
  for (const double factor : {0.9, 1.0, 1.3}) {
    for (const Placement placement : {Placement::kHost, Placement::kStreamed}) {
      PlanRequest request = gpt_6_65();
      request.placement = placement;
      request.schedule = Schedule::kAtStep;
      const Plan plan = make_plan(request, h200());
      const double measured = factor * plan.prediction.iteration_s;
      const CorrectedModel model = corrected(request, h200(), plan, {.iteration_s = measured});
      expect_within(
          predict(model.request, model.machine, plan.placements, plan.schedule).iteration_s,
          measured, 1e-6);
    }
  }
}

TEST(Plan, CorrectionTakesOverWhatWasMeasuredByItself) {
  PlanRequest request = gpt_2_65();
  request.placement = Placement::kHost;
  request.schedule = Schedule::kAtStep;
  const Plan plan = make_plan(request, h200());
  const double host_elements = elements_in(request, plan, Placement::kHost);
  const CorrectedModel model = corrected(
      request, h200(), plan,
      {.iteration_s = 1.2, .forward_backward_s = 0.7, .update_s = 0.4e-9 * host_elements});
  EXPECT_DOUBLE_EQ(model.request.forward_s + model.request.backward_s, 0.7);
  const Plan again = make_plan(model.request, model.machine);
  expect_within(again.prediction.iteration_s, 1.2, 0.5);
  EXPECT_GT(again.prediction.cpu_s, plan.prediction.cpu_s);
}

// Forward and backward were measured, and a fifth of the iteration was waited for, though the model
// hides it all: the link must be slower than it says.
TEST(Plan, CorrectionBlamesTheStepForTimeThatForwardAndBackwardLeave) {
  PlanRequest request = gpt_2_65();
  request.is_attached = true;
  request.placement = Placement::kStreamed;
  request.schedule = Schedule::kInBackward;
  const Plan plan = make_plan(request, h200());
  ASSERT_EQ(plan.bound, Bound::kCompute);
  const double forward_backward = request.forward_s + request.backward_s;
  const double measured = 1.25 * forward_backward;
  const CorrectedModel model = corrected(
      request, h200(), plan, {.iteration_s = measured, .forward_backward_s = forward_backward});
  EXPECT_LT(model.machine.link_duplex, h200().link_duplex);
  EXPECT_NEAR(model.request.forward_s, request.forward_s, 1e-9);
  expect_within(
      evaluate(model.request, model.machine, plan.placements, plan.schedule).prediction.iteration_s,
      measured, 1e-6);
}

TEST(Plan, CorrectionMayChangeTheChoice) {
  PlanRequest request = gpt_6_65();
  request.needs_norm = false;
  Machine machine = h200();
  machine.link_duplex = 20 * kGB;
  machine.updates = {{kEightBit, 0.05e-9}};  // far too good
  const Plan plan = make_plan(request, machine);
  const double host = elements_in(request, plan, Placement::kHost);
  ASSERT_GT(host, 0.5 * elements_of(request));
  const CorrectedModel model =
      corrected(request, machine, plan, {.iteration_s = 3, .update_s = 0.5e-9 * host});
  const Plan again = make_plan(model.request, model.machine);
  EXPECT_LT(elements_in(request, again, Placement::kHost), host);
}

}  // namespace
}  // namespace outboard
