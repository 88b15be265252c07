// The run-time view of the catalogue of rules: lookup, ranges, combinations and scalars.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "outboard/error.h"
#include "outboard/rules/adamw.h"
#include "support/catalogue.h"
#include "support/rule_cases.h"

namespace outboard {
namespace {

using testing::default_hyper;

std::string refusal(const RuleInfo& rule, const std::vector<double>& hyper) {
  try {
    check_hyper(rule, hyper, "Test");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    return error.what();
  }
  return "";
}

template <class Rule>
class RuleTableTest : public ::testing::Test {};
TYPED_TEST_SUITE(RuleTableTest, testing::AllRules, testing::CatalogueNames);

TYPED_TEST(RuleTableTest, IsFoundByNameAndAcceptsItsDefaults) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  EXPECT_EQ(&rule, &rule_info(rule.id));
  EXPECT_EQ(refusal(rule, default_hyper(rule)), "");
}

TYPED_TEST(RuleTableTest, EveryValueOutOfRangeIsRefusedByName) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  for (size_t i = 0; i < rule.hyper_parameters.size(); ++i) {
    const HyperParameter& parameter = rule.hyper_parameters[i];
    std::vector<double> wrong = {std::nan(""), std::numeric_limits<double>::infinity()};
    if (parameter.is_flag) wrong.push_back(0.5);
    if (parameter.is_open) wrong.push_back(parameter.maximum);
    if (parameter.minimum == 0) wrong.push_back(-1e-9);
    for (const double value : wrong) {
      std::vector<double> hyper = default_hyper(rule);
      hyper[i] = value;
      const std::string text = refusal(rule, hyper);
      EXPECT_NE(text.find("[Test] " + std::string(rule.name)), std::string::npos) << text;
      EXPECT_NE(text.find(parameter.key), std::string::npos) << text;
    }
  }
}

TYPED_TEST(RuleTableTest, StatesAreNeededByExistingHyperParameters) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  for (const StateInfo& state : rule.states) {
    EXPECT_LT(state.needed_by, static_cast<int>(rule.hyper_parameters.size()));
  }
}

TEST(RuleTable, UnknownNamesAreRefusedWithTheKnownOnes) {
  try {
    static_cast<void>(rule_named("Adamm"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("known are AdamW, Adam, SGD"), std::string::npos);
  }
}

TEST(RuleTable, WrongNumberOfHyperParametersIsRefused) {
  EXPECT_NE(refusal(rule_named("SGD"), {0.1}).find("got 1"), std::string::npos);
}

TEST(RuleTable, NesterovNeedsMomentumWithoutDampening) {
  const RuleInfo& sgd = rule_named("SGD");
  EXPECT_NE(refusal(sgd, {0.1, 0, 0, 0, 1, 0}).find("nesterov"), std::string::npos);
  EXPECT_NE(refusal(sgd, {0.1, 0.9, 0.5, 0, 1, 0}).find("nesterov"), std::string::npos);
  EXPECT_EQ(refusal(sgd, {0.1, 0.9, 0, 0, 1, 0}), "");
}

TEST(RuleTable, ScalarsAreFormedInDoubleAndRoundedOnce) {
  const std::vector<double> hyper = {3e-4, 0.9, 0.999, 1e-8, 0.1, 0, 0};
  const RuleScalars erased = rule_named("AdamW").scalars(hyper, 1000, 0.25);
  const auto s = erased.as<rules::AdamScalars<float>>();
  EXPECT_EQ(s.gradient_scale, 0.25f);
  EXPECT_EQ(s.decay, static_cast<float>(1 - 3e-4 * 0.1));
  EXPECT_EQ(s.root_correction, static_cast<float>(std::sqrt(1 - std::pow(0.999, 1000))));
  EXPECT_EQ(s.step_size, static_cast<float>(3e-4 / (1 - std::pow(0.9, 1000))));
  EXPECT_EQ(s.l2, 0.0f);
  EXPECT_TRUE(erased == rule_named("AdamW").scalars(hyper, 1000, 0.25));
  EXPECT_FALSE(erased == rule_named("AdamW").scalars(hyper, 1001, 0.25));
}

}  // namespace
}  // namespace outboard
