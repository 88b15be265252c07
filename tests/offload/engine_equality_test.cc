// The overlapped engine equals a plain loop bit by bit: weights, masters, states, step counts,
// norms, for every combination of intake, accumulation, clipping and rule, on a device that delays
// and poisons. What makes it fail is a missing wait. Sweeps are along the ways that rules take.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/offload/support/equality.h"
#include "tests/offload/support/rule_ways.h"
#include "tests/offload/support/trial.h"

namespace outboard {
namespace {

using testing::Clip;
using testing::Trial;
using testing::Way;

constexpr size_t kSeeds = 4;  // at least, and every rule of the way
constexpr uint64_t kSlowSeeds = 80;

enum class Intake { kKeepsGradients, kOffloadsGradients };

using Combination = std::tuple<Intake, int, Clip, Way>;

Trial trial_of(Intake intake, int accumulation, Clip clip, RuleId rule, uint64_t seed) {
  Trial trial{.seed = seed,
              .rule = rule,
              .offload_gradients = intake == Intake::kOffloadsGradients,
              .accumulation = accumulation,
              .clip = clip,
              .parameters = testing::parameters_of_every_kind(seed)};
  const uint64_t draw = splitmix64(seed ^ 99);
  trial.skips_nonfinite = (draw & 1) != 0;
  trial.loss_scale = (draw & 6) == 6 ? 512.0f : 1.0f;
  trial.slots = 1 + static_cast<int>(draw >> 3 & 1);
  trial.threads = 1 + static_cast<int>(draw >> 4 & 1);
  return trial;
}

void expect_equal(const Trial& trial, int max_delay_microseconds) {
  SCOPED_TRACE(std::string(rule_info(trial.rule).name) + ", seed " + std::to_string(trial.seed) +
               ", slots " + std::to_string(trial.slots) + ", loss scale " +
               std::to_string(trial.loss_scale) +
               (trial.skips_nonfinite ? ", skips" : ", does not skip"));
  testing::expect_equals_plain_loop(trial, max_delay_microseconds);
}

std::string name_of(const ::testing::TestParamInfo<Combination>& info) {
  const auto& [intake, accumulation, clip, way] = info.param;
  constexpr const char* kClips[] = {"Off", "Never", "Sometimes", "Always"};
  return testing::name_of(way) + (intake == Intake::kOffloadsGradients ? "Offloads" : "Keeps") +
         std::to_string(accumulation) + "Clip" + kClips[static_cast<int>(clip)];
}

const auto kEveryCombination = ::testing::Combine(
    ::testing::Values(Intake::kKeepsGradients, Intake::kOffloadsGradients), ::testing::Values(1, 4),
    ::testing::Values(Clip::kOff, Clip::kNever, Clip::kSometimes, Clip::kAlways),
    ::testing::ValuesIn(testing::kEveryWay));

class EngineEquality : public ::testing::TestWithParam<Combination> {};

TEST_P(EngineEquality, EqualsThePlainLoop) {
  const auto& [intake, accumulation, clip, way] = GetParam();
  const std::vector<RuleId> rules = testing::rules_of(way);
  for (size_t i = 0; i < std::max(kSeeds, rules.size()); ++i) {
    const RuleId rule = rules[i % rules.size()];
    expect_equal(trial_of(intake, accumulation, clip, rule, (i + 1) * 1000 + 7), 60);
  }
}

INSTANTIATE_TEST_SUITE_P(Matrix, EngineEquality, kEveryCombination, name_of);

// Random combinations with longer delays.
class EngineEqualitySlow : public ::testing::TestWithParam<Way> {};

TEST_P(EngineEqualitySlow, EqualsThePlainLoop) {
  const std::vector<RuleId> rules = testing::rules_of(GetParam());
  const uint64_t count = testing::seeds_of(GetParam(), kSlowSeeds);
  const uint64_t first = testing::first_seed(count);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const RuleId rule = rules[seed % rules.size()];
    const uint64_t draw = splitmix64(seed * 31 + static_cast<uint64_t>(rule));
    const auto intake = (draw & 1) != 0 ? Intake::kKeepsGradients : Intake::kOffloadsGradients;
    const int accumulation = 1 + static_cast<int>(draw >> 1 & 3);
    const auto clip = static_cast<Clip>(draw >> 3 & 3);
    Trial trial = trial_of(intake, accumulation, clip, rule, draw);
    trial.steps = 2 + static_cast<int>(draw >> 5 & 3);
    trial.has_unused = (draw >> 7 & 1) != 0;
    expect_equal(trial, static_cast<int>(draw >> 8 & 255));
  }
}

INSTANTIATE_TEST_SUITE_P(Sweep, EngineEqualitySlow, ::testing::ValuesIn(testing::kEveryWay),
                         [](const auto& info) { return testing::name_of(info.param); });

}  // namespace
}  // namespace outboard
