// What the planner chooses and says: placements within budgets, schedules, reasons, refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "offload/support/measured_models.h"
#include "outboard/error.h"
#include "outboard/plan.h"

namespace outboard {
namespace {

using ::outboard::testing::elements_in;
using ::outboard::testing::elements_of;
using ::outboard::testing::gpt_2_65;
using ::outboard::testing::gpt_6_65;
using ::outboard::testing::h200;
using ::outboard::testing::kEightBit;
using ::outboard::testing::kGB;
using ::outboard::testing::kSchedules;
using ::outboard::testing::with_float_state;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

TEST(PlanChoice, StreamsWhereTheCpuIsTooSlow) {
  PlanRequest request = gpt_6_65();
  request.needs_norm = false;
  request.is_attached = true;
  Machine machine = h200();
  machine.updates = {{kEightBit, 0.4e-9}};  // four threads
  const Plan plan = make_plan(request, machine);
  EXPECT_GT(elements_in(request, plan, Placement::kStreamed), 0.7 * elements_of(request));
  EXPECT_EQ(plan.schedule, Schedule::kInBackward);
}

TEST(PlanChoice, UpdatesOnTheHostWhereTheLinkIsTooSlow) {
  PlanRequest request = gpt_2_65();
  Machine machine = h200();
  machine.link_down = machine.link_up = machine.link_duplex = 12 * kGB;
  const Plan plan = make_plan(request, machine);
  EXPECT_GT(elements_in(request, plan, Placement::kHost), 0.6 * elements_of(request));
}

TEST(PlanChoice, MixtureIsNeverSlowerThanEitherAlone) {
  for (PlanRequest request : {gpt_2_65(), gpt_6_65(), with_float_state(gpt_6_65())}) {
    for (const Schedule schedule : kSchedules) {
      for (const bool is_attached : {false, true}) {
        request.is_attached = is_attached;
        request.schedule = schedule;
        const double mixed = make_plan(request, h200()).prediction.iteration_s;
        for (const Placement placement : {Placement::kHost, Placement::kStreamed}) {
          PlanRequest forced = request;
          forced.placement = placement;
          EXPECT_LE(mixed, make_plan(forced, h200()).prediction.iteration_s * 1.0101)
              << word_for(schedule) << ", " << word_for(placement);
        }
      }
    }
  }
}

TEST(PlanChoice, MixtureKeepsLinkAndHostBusyForTheSameTime) {
  PlanRequest request = with_float_state(gpt_6_65());
  request.schedule = Schedule::kInBackward;
  request.needs_norm = false;
  const Plan plan = make_plan(request, h200());
  ASSERT_GT(elements_in(request, plan, Placement::kHost), 0);
  ASSERT_GT(elements_in(request, plan, Placement::kStreamed), 0);
  EXPECT_NEAR(plan.prediction.link_s, plan.prediction.host_memory_s, 0.15 * plan.prediction.link_s);
}

TEST(PlanChoice, FillsTheDeviceBudgetWithWhatIsNeededFirst) {
  PlanRequest request = gpt_2_65();
  const double embedding_bytes = static_cast<double>(request.parameters[0].elements) * 4.0625;
  request.device_state_bytes = static_cast<size_t>(1.1 * embedding_bytes);
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(plan.placements[0], Placement::kResident);
  EXPECT_LE(plan.bytes.device_state, request.device_state_bytes);
  EXPECT_GE(plan.bytes.device_state, 0.9 * static_cast<double>(request.device_state_bytes));
}

TEST(PlanChoice, PutsOnTheDeviceWhatSavesMostPerByte) {
  PlanRequest request;
  request.parameters = {{.elements = 100'000'000, .state_bytes = 8},
                        {.elements = 100'000'000, .state_bytes = 2.0625}};
  request.device_state_bytes = 1'000'000'000;
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(plan.placements[1], Placement::kResident)
      << "fp32 state takes 2.5 times the bytes, and costs the host less than that";
  EXPECT_NE(plan.placements[0], Placement::kResident);
}

TEST(PlanChoice, KeepsSmallParametersOnTheDevice) {
  PlanRequest request = gpt_2_65();
  request.parameters.push_back({.elements = 4095});
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(plan.placements.back(), Placement::kResident);
  EXPECT_NE(plan.placements[1], Placement::kResident);
}

TEST(PlanChoice, EverythingIsResidentWhereItFits) {
  PlanRequest request = gpt_2_65();
  request.device_state_bytes = 64'000'000'000;
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(elements_in(request, plan, Placement::kResident), elements_of(request));
  EXPECT_EQ(plan.schedule, Schedule::kAtStep) << "nothing to hide: the simplest schedule";
  EXPECT_EQ(plan.bytes.host(), 0u);
  EXPECT_EQ(plan.bound, Bound::kCompute);
}

TEST(PlanChoice, StaysAtStepWithoutAnAttachedModel) {
  PlanRequest request = gpt_2_65();
  const Plan plan = make_plan(request, h200());
  EXPECT_EQ(plan.schedule, Schedule::kAtStep);
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("need an attached model")));
  request.schedule = Schedule::kInBackward;
  EXPECT_EQ(make_plan(request, h200()).schedule, Schedule::kInBackward) << "as asked";
}

TEST(PlanChoice, StreamsNoSmallParameters) {
  PlanRequest request = gpt_2_65();
  request.parameters.push_back({.elements = 65535});
  request.parameters.push_back({.elements = 65536});
  request.placement = Placement::kStreamed;
  const std::vector<Placement> placements = make_plan(request, h200()).placements;
  EXPECT_EQ(placements[placements.size() - 2], Placement::kHost);
  EXPECT_EQ(placements.back(), Placement::kStreamed);
}

TEST(PlanChoice, ChoosesTheNextForwardWhenClippingFiresAtEveryStep) {
  PlanRequest request = gpt_2_65();
  request.is_attached = true;
  request.redo_rate = 1;
  EXPECT_EQ(make_plan(request, h200()).schedule, Schedule::kNextForward);
  request.redo_rate = 0;
  EXPECT_EQ(make_plan(request, h200()).schedule, Schedule::kInBackward);
}

TEST(PlanChoice, AvoidsSpeculationThatDoesNotFit) {
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

TEST(PlanChoice, SaysWhatIsMissingWhenNothingFits) {
  PlanRequest request = gpt_6_65();
  request.host_bytes = 10'000'000'000;
  const Plan plan = make_plan(request, h200());
  EXPECT_FALSE(plan.fits);
  EXPECT_THAT(plan.reasons, Contains(AllOf(HasSubstr("does not fit"), HasSubstr("of host memory"),
                                           HasSubstr("10.00 GB"))));
}

TEST(PlanChoice, SaysWhyAScheduleWasChosen) {
  PlanRequest request = gpt_2_65();
  request.is_attached = true;
  const Plan plan = make_plan(request, h200());
  EXPECT_THAT(plan.reasons, Contains(AllOf(HasSubstr("chose schedule in_backward"),
                                           HasSubstr("at_step would take"))));
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("speculative")));
  request.schedule = Schedule::kAtStep;
  EXPECT_THAT(make_plan(request, h200()).reasons, Contains(HasSubstr("at_step, as asked")));
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

TEST(PlanChoice, RefusesWhatCannotBePlanned) {
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
