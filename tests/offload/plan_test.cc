// The planner: known iterations of probes, budgets, which way figures move when a machine or a
// request changes, and corrections.
#include "outboard/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "outboard/error.h"

namespace outboard {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

constexpr double kGB = 1e9;
const std::string kEightBit = update_name("AdamW", "8bit", MasterFormat::kSplit);
const std::string kFloat = update_name("AdamW", "fp32", MasterFormat::kSplit);
constexpr Schedule kSchedules[] = {Schedule::kAtStep, Schedule::kNextForward,
                                   Schedule::kInBackward};
constexpr Placement kPlacements[] = {Placement::kResident, Placement::kHost, Placement::kStreamed};

/// One H200, 16 cores, PCIe 5, as measured.
Machine h200() {
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
PlanRequest gpt(size_t hidden, size_t layers, double forward_backward_s) {
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
PlanRequest gpt_2_65() { return gpt(2560, 32, 0.628); }
PlanRequest gpt_6_65() { return gpt(4096, 32, 0.713); }

PlanRequest with_float_state(PlanRequest request) {
  for (ParameterToPlan& parameter : request.parameters) parameter.state_bytes = 8;
  request.update = kFloat;
  return request;
}

double elements_of(const PlanRequest& request) {
  double sum = 0;
  for (const ParameterToPlan& p : request.parameters) sum += static_cast<double>(p.elements);
  return sum;
}

double elements_in(const PlanRequest& request, const Plan& plan, Placement placement) {
  double sum = 0;
  for (size_t i = 0; i < plan.placements.size(); ++i) {
    if (plan.placements[i] != placement) continue;
    sum += static_cast<double>(request.parameters[i].elements);
  }
  return sum;
}

Prediction uniform(const PlanRequest& request, const Machine& machine, Placement placement,
                   Schedule schedule) {
  return predict(request, machine, std::vector<Placement>(request.parameters.size(), placement),
                 schedule);
}

void expect_within(double predicted, double measured, double share) {
  EXPECT_NEAR(predicted, measured, share * measured)
      << "off by " << 100 * (predicted / measured - 1) << " %";
}

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

TEST(Plan, StreamsWhereTheCpuIsTooSlow) {
  PlanRequest request = gpt_6_65();
  request.needs_norm = false;
  Machine machine = h200();
  machine.updates = {{kEightBit, 0.4e-9}};  // four threads
  const Plan plan = make_plan(request, machine);
  EXPECT_GT(elements_in(request, plan, Placement::kStreamed), 0.7 * elements_of(request));
  EXPECT_EQ(plan.schedule, Schedule::kInBackward);
}

TEST(Plan, UpdatesOnTheHostWhereTheLinkIsTooSlow) {
  PlanRequest request = gpt_2_65();
  Machine machine = h200();
  machine.link_down = machine.link_up = machine.link_duplex = 12 * kGB;
  const Plan plan = make_plan(request, machine);
  EXPECT_GT(elements_in(request, plan, Placement::kHost), 0.6 * elements_of(request));
}

TEST(Plan, MixtureIsNeverSlowerThanEitherAlone) {
  for (PlanRequest request : {gpt_2_65(), gpt_6_65(), with_float_state(gpt_6_65())}) {
    for (const Schedule schedule : kSchedules) {
      for (const bool is_attached : {false, true}) {
        request.is_attached = is_attached;
        request.schedule = schedule;
        const double mixed = make_plan(request, h200()).prediction.iteration_s;
        for (const Placement placement : {Placement::kHost, Placement::kStreamed}) {
          PlanRequest forced = request;
          forced.placement = placement;
          EXPECT_LE(mixed, make_plan(forced, h200()).prediction.iteration_s * 1.005)
              << word_for(schedule) << ", " << word_for(placement);
        }
      }
    }
  }
}

TEST(Plan, MixtureKeepsLinkAndHostBusyForTheSameTime) {
  PlanRequest request = with_float_state(gpt_6_65());
  request.schedule = Schedule::kInBackward;
  const Plan plan = make_plan(request, h200());
  ASSERT_GT(elements_in(request, plan, Placement::kHost), 0);
  ASSERT_GT(elements_in(request, plan, Placement::kStreamed), 0);
  EXPECT_NEAR(plan.prediction.link_s, plan.prediction.host_memory_s, 0.15 * plan.prediction.link_s);
}

TEST(Plan, FillsTheDeviceBudgetWithWhatIsNeededFirst) {
  PlanRequest request = gpt_2_65();
  const double embedding_bytes = static_cast<double>(request.parameters[0].elements) * 4.0625;
  request.device_state_bytes = static_cast<size_t>(1.1 * embedding_bytes);
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(plan.placements[0], Placement::kResident);
  EXPECT_LE(plan.bytes.device_state, request.device_state_bytes);
  EXPECT_GE(plan.bytes.device_state, 0.9 * static_cast<double>(request.device_state_bytes));
}

TEST(Plan, KeepsSmallParametersOnTheDevice) {
  PlanRequest request = gpt_2_65();
  request.parameters.push_back({.elements = 4095});
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(plan.placements.back(), Placement::kResident);
  EXPECT_NE(plan.placements[1], Placement::kResident);
}

TEST(Plan, EverythingIsResidentWhereItFits) {
  PlanRequest request = gpt_2_65();
  request.device_state_bytes = 64'000'000'000;
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(elements_in(request, plan, Placement::kResident), elements_of(request));
  EXPECT_EQ(plan.schedule, Schedule::kAtStep) << "nothing to hide: the simplest schedule";
  EXPECT_EQ(plan.bytes.host(), 0u);
  EXPECT_EQ(plan.bound, Bound::kCompute);
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
    EXPECT_LT(backward, forward);
    EXPECT_GT(backward, 0) << "the last gradient's update has nothing to hide in";
  }
}

TEST(Plan, ChoosesTheNextForwardWhenClippingFiresAtEveryStep) {
  PlanRequest request = gpt_2_65();
  request.is_attached = true;
  request.redo_rate = 1;
  EXPECT_EQ(make_plan(request, h200()).schedule, Schedule::kNextForward);
  request.redo_rate = 0;
  EXPECT_EQ(make_plan(request, h200()).schedule, Schedule::kInBackward);
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
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kStreamed, Schedule::kAtStep).host()),
                   10 * n);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kStreamed, Schedule::kInBackward).host()),
                   20 * n)
      << "speculation keeps second copies";
  request.needs_norm = false;
  const PlanBytes streamed = bytes(Placement::kStreamed, Schedule::kInBackward);
  EXPECT_DOUBLE_EQ(static_cast<double>(streamed.host()), 10 * n);
  EXPECT_EQ(streamed.device_gradients + streamed.device_old_weights, 0u);
  const PlanBytes host = bytes(Placement::kHost, Schedule::kInBackward);
  EXPECT_DOUBLE_EQ(static_cast<double>(host.host()) - static_cast<double>(host.host_staging),
                   12 * n);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes(Placement::kResident, Schedule::kAtStep).device()),
                   10 * n);
}

TEST(Plan, SpeculationKeepsGradientsAndOldWeightsOnTheDevice) {
  const PlanRequest request = gpt_2_65();
  const std::vector<Placement> streamed(request.parameters.size(), Placement::kStreamed);
  const PlanBytes bytes = plan_bytes(request, streamed, Schedule::kInBackward);
  const double n = elements_of(request);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes.device_gradients), 2 * n);
  EXPECT_DOUBLE_EQ(static_cast<double>(bytes.device_old_weights), 2 * n);
}

TEST(Plan, AvoidsSpeculationThatDoesNotFit) {
  PlanRequest request = gpt_6_65();
  request.is_attached = true;
  request.host_bytes = static_cast<size_t>(6.5 * elements_of(request));
  const Plan plan = make_plan(request, h200());
  EXPECT_TRUE(plan.fits);
  EXPECT_LE(plan.bytes.host(), request.host_bytes);
  EXPECT_FALSE(plan.is_speculative);
  request.host_bytes = kNoLimit;
  EXPECT_TRUE(make_plan(request, h200()).is_speculative);
}

TEST(Plan, SaysWhatIsMissingWhenNothingFits) {
  PlanRequest request = gpt_6_65();
  request.host_bytes = 10'000'000'000;
  const Plan plan = make_plan(request, h200());
  EXPECT_FALSE(plan.fits);
  EXPECT_THAT(plan.reasons, Contains(AllOf(HasSubstr("does not fit"), HasSubstr("of host memory"),
                                           HasSubstr("10.00 GB"))));
}

TEST(Plan, SaysWhyAScheduleWasChosen) {
  PlanRequest request = gpt_2_65();
  request.is_attached = true;
  const Plan plan = make_plan(request, h200());
  EXPECT_THAT(plan.reasons, Contains(AllOf(HasSubstr("chose schedule in_backward"),
                                           HasSubstr("at_step would take"))));
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("speculative")));
  request.schedule = Schedule::kAtStep;
  EXPECT_THAT(make_plan(request, h200()).reasons, Contains(HasSubstr("at_step, as asked")));
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

void expect_error(const std::function<void(PlanRequest&, Machine&)>& spoil, const char* text) {
  PlanRequest request = gpt_2_65();
  Machine machine = h200();
  spoil(request, machine);
  try {
    (void)make_plan(request, machine);
    ADD_FAILURE() << "nothing was thrown; expected " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

TEST(Plan, RefusesWhatCannotBePlanned) {
  expect_error([](PlanRequest& r, Machine&) { r.parameters.clear(); }, "0 parameters");
  expect_error([](PlanRequest& r, Machine&) { r.parameters[0].elements = 0; }, "0 elements");
  expect_error([](PlanRequest& r, Machine&) { r.backward_s = -1; }, "backward_s is -1");
  expect_error([](PlanRequest& r, Machine&) { r.redo_rate = 1.5; }, "redo_rate 1.5");
  expect_error([](PlanRequest& r, Machine&) { r.accumulation_steps = 0; }, "accumulation_steps");
  expect_error([](PlanRequest&, Machine& m) { m.link_up = 0; }, "link_up is 0");
  expect_error([](PlanRequest&, Machine& m) { m.host_bandwidth = 0; }, "host_bandwidth is 0");
}

}  // namespace
}  // namespace outboard
