// Schedules and placements change when things happen and where, never a bit of the result: the
// overlapped engine equals the plain loop for every combination, on a device that delays and
// poisons.
#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "outboard/device.h"
#include "outboard/engine.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "quant/random.h"
#include "tests/offload/support/equality.h"
#include "tests/offload/support/rule_ways.h"
#include "tests/offload/support/trial.h"

namespace outboard {
namespace {

using testing::Clip;
using testing::Trial;
using testing::Way;

enum class Places { kHost, kMixed, kStreamed };

constexpr uint64_t kSeeds = 3;
constexpr uint64_t kSlowSeeds = 80;
constexpr const char* kFormats[] = {"fp32", "bf16", "8bit", "4bit", "8bit/4bit", "fp8", "dynamic8"};

Trial trial_of(Schedule schedule, Places places, Clip clip, uint64_t seed) {
  Trial trial{.seed = seed,
              .clip = clip,
              .schedule = schedule,
              .parameters = testing::parameters_of_every_kind(seed)};
  const uint64_t draw = splitmix64(seed ^ 55);
  const auto formats = state_formats_named(kFormats[draw % std::size(kFormats)]);
  for (auto& parameter : trial.parameters) {
    if ((draw >> 8 & 1) != 0) parameter.formats = formats;
  }
  if (places != Places::kHost) {
    trial.parameters = testing::streamed(trial.parameters, places == Places::kStreamed);
  }
  trial.offload_gradients = (draw >> 9 & 1) != 0;
  trial.skips_nonfinite = (draw >> 10 & 1) != 0;
  trial.accumulation = (draw >> 11 & 1) != 0 ? 1 : 3;
  trial.sends_every_backward = (draw >> 12 & 1) != 0;
  trial.has_unused = (draw >> 13 & 3) == 0;
  trial.loss_scale = (draw >> 15 & 3) == 3 ? 512.0f : 1.0f;
  trial.threads = 1 + static_cast<int>(draw >> 17 & 1);
  trial.steps = 6;
  return trial;
}

StepStats expect_equal(const Trial& trial, int max_delay_microseconds) {
  SCOPED_TRACE(std::string(rule_info(trial.rule).name) + ", seed " + std::to_string(trial.seed) +
               ", accumulation " + std::to_string(trial.accumulation) +
               (trial.offload_gradients ? ", offloads" : ", keeps") +
               (trial.skips_nonfinite ? ", skips" : ", does not skip"));
  return testing::expect_equals_plain_loop(trial, max_delay_microseconds);
}

using Combination = std::tuple<Schedule, Places, Clip>;

class EngineSchedules : public ::testing::TestWithParam<Combination> {};

TEST_P(EngineSchedules, EqualThePlainLoop) {
  const auto& [schedule, places, clip] = GetParam();
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    expect_equal(trial_of(schedule, places, clip, seed * 917 + 3), 60);
  }
}

// Weights that are on their way are NaN for whoever did not wait.
TEST_P(EngineSchedules, EqualThePlainLoopPoisoned) {
  const auto& [schedule, places, clip] = GetParam();
  Trial trial = trial_of(schedule, places, clip, 4711);
  trial.poisons_in_flight = true;
  expect_equal(trial, 60);
}

std::string name_of(const ::testing::TestParamInfo<Combination>& info) {
  const auto& [schedule, places, clip] = info.param;
  constexpr const char* kSchedules[] = {"AtStep", "NextForward", "InBackward"};
  constexpr const char* kPlaces[] = {"Host", "Mixed", "Streamed"};
  constexpr const char* kClips[] = {"Off", "Never", "Sometimes", "Always"};
  return std::string(kSchedules[static_cast<int>(schedule)]) + kPlaces[static_cast<int>(places)] +
         "Clip" + kClips[static_cast<int>(clip)];
}

INSTANTIATE_TEST_SUITE_P(
    Matrix, EngineSchedules,
    ::testing::Combine(
        ::testing::Values(Schedule::kAtStep, Schedule::kNextForward, Schedule::kInBackward),
        ::testing::Values(Places::kHost, Places::kMixed, Places::kStreamed),
        ::testing::Values(Clip::kOff, Clip::kNever, Clip::kSometimes, Clip::kAlways)),
    name_of);

// A test of the tests: updates do begin in backward, and some are dropped.
TEST(EngineInBackward, AcceptsWhatHoldsAndDropsWhatDoesNot) {
  Trial trial = trial_of(Schedule::kInBackward, Places::kStreamed, Clip::kNever, 1);
  trial.loss_scale = 1;
  trial.skips_nonfinite = true;
  trial.accumulation = 1;
  trial.has_unused = false;
  const StepStats never = expect_equal(trial, 30);
  EXPECT_GT(never.early_updates, 0);
  EXPECT_EQ(never.dropped_updates, 0);
  trial.clip = Clip::kSometimes;
  const StepStats sometimes = expect_equal(trial, 30);
  EXPECT_GT(sometimes.dropped_updates, 0);
  EXPECT_LT(sometimes.early_updates, never.early_updates);
}

TEST(EngineInBackward, UpdatesForGoodWhenNothingCanChangeTheGradient) {
  for (const Places places : {Places::kHost, Places::kStreamed}) {
    for (const int accumulation : {1, 3}) {
      Trial trial = trial_of(Schedule::kInBackward, places, Clip::kOff, 12);
      trial.offload_gradients = true;
      trial.skips_nonfinite = false;
      trial.loss_scale = 1;
      trial.has_unused = false;
      trial.accumulation = accumulation;
      ASSERT_TRUE(trial.updates_for_good());
      const StepStats stats = expect_equal(trial, 30);
      EXPECT_GT(stats.early_updates, 0);
      EXPECT_EQ(stats.dropped_updates, 0);
    }
  }
}

TEST(EngineInBackward, ANonfiniteGradientSkipsTheStepExactly) {
  Trial trial = trial_of(Schedule::kInBackward, Places::kMixed, Clip::kNever, 2);
  trial.skips_nonfinite = true;
  trial.has_unused = false;
  trial.accumulation = 1;
  trial.spoiled = {
      .step = 3, .parameter = 1, .element = 5, .value = std::numeric_limits<float>::infinity()};
  const StepStats stats = expect_equal(trial, 30);
  EXPECT_EQ(stats.skipped_steps, 1);
  EXPECT_GT(stats.dropped_updates, 0);
}

// Without a norm over all gradients, a parameter's own norm still needs its whole gradient.
TEST(EngineSchedulesNorms, AreOfWholeGradients) {
  Trial trial = trial_of(Schedule::kNextForward, Places::kHost, Clip::kOff, 21);
  trial.rule = rule_named("LAMB").id;
  trial.skips_nonfinite = false;
  trial.loss_scale = 1;
  trial.accumulation = 1;
  trial.steps = 3;
  expect_equal(trial, 500);
}

// Random combinations along the ways that rules take.
class EngineSchedulesSlow : public ::testing::TestWithParam<Way> {};

TEST_P(EngineSchedulesSlow, EqualThePlainLoop) {
  const std::vector<RuleId> rules = testing::rules_of(GetParam());
  const uint64_t count = testing::seeds_of(GetParam(), kSlowSeeds);
  const uint64_t first = testing::first_seed(count);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const RuleId rule = rules[seed % rules.size()];
    const uint64_t draw = splitmix64(seed * 77 + static_cast<uint64_t>(rule));
    Trial trial = trial_of(static_cast<Schedule>(draw % 3), static_cast<Places>((draw >> 8) % 3),
                           static_cast<Clip>(draw >> 16 & 3), draw);
    trial.rule = rule;
    trial.poisons_in_flight = (draw >> 24 & 7) == 0;
    expect_equal(trial, static_cast<int>(draw >> 32 & 127));
  }
}

INSTANTIATE_TEST_SUITE_P(Sweep, EngineSchedulesSlow, ::testing::ValuesIn(testing::kEveryWay),
                         [](const auto& info) { return testing::name_of(info.param); });

}  // namespace
}  // namespace outboard
