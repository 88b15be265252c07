// Norm, clip factor and gradient scale against their definitions, to the last bit.
#include "offload/step_decision.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "offload/schedule.h"

namespace outboard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(StepDecision, WithoutClippingTheScaleIsOneOverTheLossScale) {
  const StepDecision decision = decide_step({.sum_of_squares = 9, .loss_scale = 8}, 0, true);
  EXPECT_TRUE(decision.is_taken);
  EXPECT_EQ(decision.norm, 3.0 / 8.0);
  EXPECT_EQ(decision.clip_factor, 1);
  EXPECT_EQ(decision.gradient_scale, 0.125);
}

TEST(StepDecision, ClipFactorIsMaxNormOverNormPlus1em6) {
  const StepDecision decision = decide_step({.sum_of_squares = 50, .loss_scale = 3}, 0.7, true);
  const double norm = std::sqrt(50.0) / 3.0;
  EXPECT_EQ(decision.norm, norm);
  EXPECT_EQ(decision.clip_factor, 0.7 / (norm + 1e-6));
  EXPECT_EQ(decision.gradient_scale, 0.7 / (norm + 1e-6) / 3.0);
}

TEST(StepDecision, AFactorAboveOneIsOne) {
  EXPECT_EQ(decide_step({.sum_of_squares = 1}, 1.0, true).clip_factor, 1 / (1 + 1e-6));
  EXPECT_EQ(decide_step({.sum_of_squares = 1}, 1.1, true).clip_factor, 1);
  EXPECT_EQ(decide_step({.sum_of_squares = 0}, 1.0, true).clip_factor, 1);
  EXPECT_EQ(decide_step({.sum_of_squares = 1}, kInfinity, true).clip_factor, 1);
}

TEST(StepDecision, SkipsWhatIsNotFinite) {
  for (const double bad : {kInfinity, kNaN}) {
    EXPECT_FALSE(decide_step({.sum_of_squares = bad}, 0, true).is_taken);
    EXPECT_FALSE(decide_step({.sum_of_squares = bad}, 1, true).is_taken);
    EXPECT_TRUE(decide_step({.sum_of_squares = bad}, 1, false).is_taken);
  }
  EXPECT_FALSE(decide_step({.sum_of_squares = 1, .found_inf = true}, 0, true).is_taken);
  EXPECT_FALSE(decide_step({.sum_of_squares = 1, .found_inf = true}, 0, false).is_taken);
}

TEST(StepDecision, ALossScaleThatLeavesNothingFiniteSkips) {
  EXPECT_FALSE(decide_step({.sum_of_squares = 1, .loss_scale = 0}, 0, true).is_taken);
  EXPECT_FALSE(decide_step({.sum_of_squares = 1, .loss_scale = kNaN}, 0, true).is_taken);
}

TEST(StepDecision, WithoutSkippingBadNormsStayVisible) {
  EXPECT_TRUE(std::isnan(decide_step({.sum_of_squares = kNaN}, 1, false).gradient_scale));
  EXPECT_EQ(decide_step({.sum_of_squares = kInfinity}, 1, false).gradient_scale, 0);
}

TEST(StepDecision, SegmentsAreAddedInOrderInDouble) {
  constexpr std::array<float, 4> kSums{1e8f, 1.0f, 1e-8f, 3.0f};
  EXPECT_EQ(add_segments(kSums), ((1e8 + 1.0) + static_cast<double>(1e-8f)) + 3.0);
  EXPECT_EQ(add_segments({}), 0);
}

TEST(Schedule, TheNormIsWaitedForOnlyWhenSomethingNeedsIt) {
  using enum UpdateStart;
  EXPECT_EQ(update_start(false, false, false), kWhenGradientArrived);
  EXPECT_EQ(update_start(true, false, false), kWhenNormKnown);
  EXPECT_EQ(update_start(false, true, false), kWhenNormKnown);
  EXPECT_EQ(update_start(false, false, true), kWhenNormKnown);
}

TEST(Schedule, OnlyInBackwardStartsEarlyAndForGoodOnlyWithoutDoubt) {
  using enum EarlyStart;
  using enum UpdateStart;
  for (const Schedule schedule : {Schedule::kAtStep, Schedule::kNextForward}) {
    EXPECT_EQ(early_start(schedule, kWhenGradientArrived, true), kNot);
    EXPECT_EQ(early_start(schedule, kWhenNormKnown, true), kNot);
  }
  EXPECT_EQ(early_start(Schedule::kInBackward, kWhenGradientArrived, true), kFinal);
  EXPECT_EQ(early_start(Schedule::kInBackward, kWhenGradientArrived, false), kTentative);
  EXPECT_EQ(early_start(Schedule::kInBackward, kWhenNormKnown, true), kTentative);
  EXPECT_EQ(early_start(Schedule::kInBackward, kWhenNormKnown, false), kTentative);
}

TEST(Acceptance, GuessesUntilOneIsDroppedAndThenPausesLongerEachTime) {
  Acceptance acceptance;
  for (int step = 0; step < 20; ++step) {
    EXPECT_TRUE(acceptance.allows_guess());
    acceptance.note(true);
  }
  for (const int pause : {1, 2, 4, 8, 16, 32, 64, 64}) {
    acceptance.note(false);
    for (int step = 0; step < pause; ++step) {
      EXPECT_FALSE(acceptance.allows_guess()) << "pause " << pause << ", step " << step;
      acceptance.note(true);
    }
    EXPECT_TRUE(acceptance.allows_guess()) << "pause " << pause;
  }
}

TEST(Acceptance, ALongRunOfRightGuessesForgetsOldFailures) {
  Acceptance acceptance;
  for (int step = 0; step < 7; ++step) acceptance.note(false);
  while (!acceptance.allows_guess()) acceptance.note(true);
  for (int step = 0; step < 16; ++step) acceptance.note(true);
  acceptance.note(false);
  acceptance.note(true);
  EXPECT_TRUE(acceptance.allows_guess());
}

}  // namespace
}  // namespace outboard
