// The scalar formula of every rule in float against the same formula in double, over
// hyper-parameter sweeps.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "support/catalogue.h"
#include "support/numbers.h"
#include "support/rule_cases.h"

namespace outboard {
namespace {

using testing::default_hyper;
using testing::has_state;
using testing::Numbers;
using testing::rule_cases;
using testing::RuleCase;

constexpr double kGradientScale = 0.37;
constexpr size_t kStates = kMaxStates;

/// Rows and columns are not update()'s to store.
constexpr bool is_of_elements(const StateInfo& state) {
  return state.shape == StateShape::kElements;
}

template <class Rule>
class RuleOracleTest : public ::testing::Test {
 protected:
  struct Element {
    float gradient;
    float weight;
    float state[kStates];
  };

  static const RuleInfo& info() { return rule_named(Rule::kName); }

  static size_t state_index(std::string_view key) {
    return static_cast<size_t>(std::ranges::find(info().states, key, &StateInfo::key) -
                               info().states.begin());
  }

  /// A centred second moment is a difference. Where the mean follows each gradient, rounding is all
  /// that is left of it.
  static bool is_well_conditioned(const RuleCase& rule_case) {
    const size_t mean = state_index("grad_avg");
    if (mean == info().states.size() || !has_state(info(), mean, rule_case.hyper)) return true;
    const auto alpha = std::ranges::find(info().hyper_parameters, "alpha", &HyperParameter::key);
    return rule_case.hyper[static_cast<size_t>(alpha - info().hyper_parameters.begin())] >= 0.5;
  }

  /// Weight and gradient pull in the same direction, so that L2 decay does not cancel the gradient:
  /// the sum would lose the digits that the bounds below count on. For the same reason a mean is
  /// half its root mean square at most.
  static Element draw(Numbers& numbers, bool is_maximizing) {
    Element element = {.gradient = numbers.spread(), .weight = 0, .state = {}};
    const bool is_down = (element.gradient < 0) != is_maximizing;
    element.weight = std::copysign(0.1f + std::abs(numbers.spread()), is_down ? -1.0f : 1.0f);
    for (size_t k = 0; k < Rule::kStates.size(); ++k) {
      const float value = numbers.spread();
      element.state[k] = Rule::kStates[k].is_signed ? value : value * value;
    }
    if (const size_t mean = state_index("grad_avg"); mean < Rule::kStates.size()) {
      const float most = 0.5f * std::sqrt(element.state[state_index("square_avg")]);
      element.state[mean] = std::clamp(element.state[mean], -most, most);
    }
    return element;
  }

  static void expect_close(const RuleCase& rule_case, int64_t step, const Element& before) {
    Element after = before;
    double weight = before.weight;
    double state[kStates];
    std::copy_n(before.state, kStates, state);
    Rule::update(Rule::template scalars<float>(rule_case.hyper, step, kGradientScale),
                 after.gradient, after.weight, after.state);
    Rule::update(Rule::template scalars<double>(rule_case.hyper, step, kGradientScale),
                 static_cast<double>(before.gradient), weight, state);
    // Three roundings are relative to the weight (decay factor, product, difference): 3 * 2^-24.
    // The others, fewer than 16, are relative to its change.
    const double change = std::abs(weight - before.weight);
    const double most = std::max(std::abs(weight), std::abs(static_cast<double>(before.weight)));
    ASSERT_NEAR(after.weight, weight, 0x1p-22 * most + 0x1p-19 * change) << rule_case.name;
    for (size_t k = 0; k < Rule::kStates.size(); ++k) {
      if (!has_state(info(), k, rule_case.hyper) || !is_of_elements(Rule::kStates[k])) continue;
      const double size = std::abs(state[k]) + std::abs(static_cast<double>(before.state[k]));
      ASSERT_NEAR(after.state[k], state[k], 0x1p-21 * size)
          << rule_case.name << " " << Rule::kStates[k].key << " step " << step;
    }
  }
};
TYPED_TEST_SUITE(RuleOracleTest, testing::AllRules, testing::CatalogueNames);

TYPED_TEST(RuleOracleTest, FloatStaysWithinItsRoundingOfDouble) {
  Numbers numbers(7);
  for (const RuleCase& rule_case : rule_cases(this->info())) {
    if (!this->is_well_conditioned(rule_case)) continue;
    const bool is_maximizing = rule_case.hyper.back() != 0;
    for (const int64_t step : {int64_t{1}, int64_t{2}, int64_t{10}, int64_t{100000}}) {
      for (int i = 0; i < 64; ++i) {
        this->expect_close(rule_case, step, this->draw(numbers, is_maximizing));
        if (this->HasFatalFailure()) return;
      }
    }
  }
}

TYPED_TEST(RuleOracleTest, MaximizeIsTheSameAsTheNegatedGradient) {
  Numbers numbers(8);
  std::vector<double> up = default_hyper(this->info());
  std::vector<double> down = up;
  ASSERT_EQ(this->info().hyper_parameters.back().key, "maximize");
  up.back() = 1;
  for (int i = 0; i < 100; ++i) {
    auto a = this->draw(numbers, false);
    auto b = a;
    TypeParam::update(TypeParam::template scalars<float>(up, 3, 0.5), a.gradient, a.weight,
                      a.state);
    TypeParam::update(TypeParam::template scalars<float>(down, 3, 0.5), -b.gradient, b.weight,
                      b.state);
    EXPECT_TRUE(testing::same_bits(a.weight, b.weight));
    EXPECT_TRUE(testing::same_bits(a.state[0], b.state[0]));
  }
}

TYPED_TEST(RuleOracleTest, SubnormalStatesAreStoredAsZero) {
  std::vector<double> hyper = default_hyper(this->info());
  for (const StateInfo& info : TypeParam::kStates) {
    if (info.needed_by < 0) continue;
    const auto i = static_cast<size_t>(info.needed_by);
    hyper[i] = this->info().hyper_parameters[i].is_flag ? 1 : 0.9;
  }
  const auto scalars = TypeParam::template scalars<float>(hyper, 2, 1.0);
  float weight = 1.0f;
  float state[kStates] = {1.17e-38f, 1.17e-38f, 1.17e-38f, 1.17e-38f};  // just below 2^-126
  TypeParam::update(scalars, 0.0f, weight, state);
  for (size_t k = 0; k < TypeParam::kStates.size(); ++k) {
    if (!is_of_elements(TypeParam::kStates[k])) continue;
    EXPECT_TRUE(testing::same_bits(0.0f, state[k])) << TypeParam::kStates[k].key;
  }
}

TYPED_TEST(RuleOracleTest, ZeroLearningRateKeepsTheWeight) {
  std::vector<double> hyper = default_hyper(this->info());
  hyper[0] = 0;
  float weight = 0.1f;
  float state[kStates] = {0.5f, 0.5f, 0.5f, 0};
  TypeParam::update(TypeParam::template scalars<float>(hyper, 1, 1.0), 2.0f, weight, state);
  EXPECT_EQ(weight, 0.1f);
}

}  // namespace
}  // namespace outboard
