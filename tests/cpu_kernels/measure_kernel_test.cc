// The first pass of rules that need norms: measured() in float against double, every SIMD kernel
// against the scalar formula, and what with_norms() makes of the two sums.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cpu_kernels/rule_kernel.h"
#include "support/catalogue.h"
#include "support/guarded_buffer.h"
#include "support/numbers.h"
#include "support/rule_cases.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::GuardedBuffer;
using ::outboard::testing::has_state;
using ::outboard::testing::Numbers;
using ::outboard::testing::rule_cases;
using ::outboard::testing::RuleCase;
using ::outboard::testing::same_bits;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class Rule>
class MeasureKernelTest : public ::testing::Test {};
TYPED_TEST_SUITE(MeasureKernelTest, ::outboard::testing::NormRules,
                 ::outboard::testing::CatalogueNames);

TYPED_TEST(MeasureKernelTest, EqualsTheScalarFormulaOnEveryTarget) {
  constexpr size_t kElements = 3 * kTileElements;
  const RuleInfo& rule = rule_named(TypeParam::kName);
  Numbers numbers(31);
  for (const RuleCase& rule_case : rule_cases(rule)) {
    SCOPED_TRACE(rule_case.name);
    const size_t shift = numbers.bits() % 5;
    GuardedBuffer gradient(numbers.many(kElements, &Numbers::wild), shift);
    GuardedBuffer weight(numbers.many(kElements, &Numbers::wild), shift);
    RuleTile tile = {gradient.as<float>(), weight.as<float>(), {}, kElements};
    std::vector<std::unique_ptr<GuardedBuffer>> states;
    for (size_t k = 0; k < rule.states.size(); ++k) {
      std::vector<float> values = numbers.many(kElements, &Numbers::wild);
      for (float& value : values) value = rule.states[k].is_signed ? value : std::abs(value);
      states.push_back(std::make_unique<GuardedBuffer>(values, shift));
      if (has_state(rule, k, rule_case.hyper)) tile.state[k] = states[k]->template as<float>();
    }
    const std::vector<float> before = weight.values<float>();
    for (const int64_t step : {int64_t{1}, int64_t{7}}) {
      const RuleScalars scalars = rule.scalars(rule_case.hyper, step, 0.37);
      std::vector<float> expected(kElements);
      run_scalar_measure<TypeParam>(scalars, tile, expected.data());
      for_each_target([&] {
        GuardedBuffer actual(std::vector<float>(kElements), shift);
        measure_kernel(rule.id)(scalars, tile, actual.as<float>());
        EXPECT_TRUE(same_bits(expected, actual.values<float>()));
        EXPECT_TRUE(actual.is_intact());
      });
    }
    EXPECT_TRUE(same_bits(before, weight.values<float>())) << "measuring changed the weight";
    if (this->HasFailure()) return;
  }
}

TYPED_TEST(MeasureKernelTest, FloatStaysWithinItsRoundingOfDouble) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  Numbers numbers(32);
  for (const RuleCase& rule_case : rule_cases(rule)) {
    for (int i = 0; i < 64; ++i) {
      // All of one sign: no sum loses the digits that the bound counts on.
      const float gradient = std::abs(numbers.spread());
      const float weight = std::abs(numbers.spread());
      float state[kMaxStates] = {};
      double exact_state[kMaxStates] = {};
      for (size_t k = 0; k < rule.states.size(); ++k) {
        exact_state[k] = state[k] = std::abs(numbers.spread());
      }
      std::vector<double> hyper = rule_case.hyper;
      hyper.back() = 0;  // maximize would change one sign
      const float actual = TypeParam::measured(TypeParam::template scalars<float>(hyper, 3, 0.37),
                                               gradient, weight, state);
      const double expected = TypeParam::measured(
          TypeParam::template scalars<double>(hyper, 3, 0.37), static_cast<double>(gradient),
          static_cast<double>(weight), exact_state);
      ASSERT_NEAR(actual, expected, 0x1p-20 * std::abs(expected)) << rule_case.name;
    }
  }
}

TYPED_TEST(MeasureKernelTest, FactorIsOneWhereANormIsZeroOrUnknown) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  std::vector<double> hyper = default_hyper(rule);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double max_unorm : {0.0, 0.5}) {
    hyper[TypeParam::kMaxUnorm] = max_unorm;
    const RuleScalars plain = rule.scalars(hyper, 2, 1.0);
    EXPECT_TRUE(plain == rule.with_norms(plain, 0, 4));
    EXPECT_TRUE(plain == rule.with_norms(plain, 4, 0));
    EXPECT_TRUE(plain == rule.with_norms(plain, 0, 0));
    EXPECT_TRUE(plain == rule.with_norms(plain, kInfinity, kInfinity));
    EXPECT_TRUE(plain == rule.with_norms(plain, nan, 1));
    EXPECT_TRUE(plain == rule.with_norms(plain, 1, nan));
  }
}

TYPED_TEST(MeasureKernelTest, ClippingOnlyShrinks) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  std::vector<double> hyper = default_hyper(rule);
  hyper[TypeParam::kMaxUnorm] = 0.5;
  hyper[TypeParam::kLr] = 0.1;
  const auto step_of = [&](double weight_squares, double update_squares) {
    const RuleScalars scalars = rule.scalars(hyper, 2, 1.0);
    return rule.with_norms(scalars, weight_squares, update_squares)
        .template as<typename TypeParam::template Scalars<float>>()
        .minus_step;
  };
  EXPECT_EQ(step_of(4.0, 1.0), -0.1f);  // the update is at the limit
  EXPECT_EQ(step_of(4.0, 0.25), -0.1f);
  EXPECT_EQ(step_of(4.0, 16.0), static_cast<float>(-0.1 * (0.5 * 2.0 / 4.0)));
  EXPECT_EQ(step_of(4.0, kInfinity), 0.0f);
}

template <class Rule>
typename Rule::template Scalars<float> with_norms(const std::vector<double>& hyper,
                                                  double weight_squares, double update_squares) {
  return Rule::with_norms(Rule::template scalars<float>(hyper, 2, 1.0), weight_squares,
                          update_squares);
}

TEST(TrustRatio, LambScalesTheStepToTheWeightAndAtMostTenfold) {
  std::vector<double> hyper = default_hyper(rule_named("LAMB"));
  hyper[rules::LAMB::kLr] = 0.1;
  EXPECT_EQ(with_norms<rules::LAMB>(hyper, 2.0, 9.0).minus_step,
            static_cast<float>(-0.1 * (std::sqrt(2.0) / 3.0)));
  EXPECT_EQ(with_norms<rules::LAMB>(hyper, 400.0, 1.0).minus_step, -1.0f);
  EXPECT_EQ(with_norms<rules::LAMB>(hyper, kInfinity, 1.0).minus_step, -1.0f);
}

TEST(TrustRatio, LarsScalesTheGradientToTheWeight) {
  std::vector<double> hyper = default_hyper(rule_named("LARS"));
  hyper[rules::LARS::kWeightDecay] = 0.25;
  hyper[rules::LARS::kEps] = 1e-3;
  hyper[rules::LARS::kTrustCoefficient] = 0.02;
  const auto scalars = with_norms<rules::LARS>(hyper, 2.0, 9.0);
  const double weight_norm = std::sqrt(2.0);
  EXPECT_EQ(scalars.trust,
            static_cast<float>(0.02 * weight_norm / (3.0 + 0.25 * weight_norm + 1e-3)));
  EXPECT_EQ(scalars.minus_step, -1e-3f);
}

}  // namespace
}  // namespace outboard::cpu
