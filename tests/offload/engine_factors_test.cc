// What the engine asks of parameters whose rule keeps row and column means, and what they cost.
// That their steps are right is in engine_equality_test.cc, with every other rule.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/support/rule_cases.h"

namespace outboard {
namespace {

using ::testing::HasSubstr;

constexpr size_t kRows = 512;
constexpr size_t kColumns = 1'024;

class EngineFactors : public ::testing::Test {
 protected:
  [[nodiscard]] ParameterSpec spec() {
    const RuleInfo& rule = rule_info(RuleId::kAdamWFactored);
    return {.name = "matrix",
            .weight = weight_.data(),
            .memory = Memory::kHost,
            .elements = weight_.size(),
            .rule = rule.id,
            .rows = kRows,
            .hyper = testing::default_hyper(rule)};
  }
  static std::string refusal(ParameterSpec spec) {
    Engine engine({}, nullptr);
    try {
      engine.add_parameters({std::move(spec)}, nullptr);
    } catch (const Error& error) {
      EXPECT_EQ(engine.parameter_count(), 0U);
      return error.what();
    }
    return "";
  }

  std::vector<float> weight_ = std::vector<float>(kRows * kColumns, 0.5f);
};

TEST_F(EngineFactors, NeedRowsThatDivideTheElements) {
  EXPECT_EQ(refusal(spec()), "");
  for (const size_t rows : {size_t{0}, kRows - 1}) {
    ParameterSpec wrong = spec();
    wrong.rows = rows;
    EXPECT_THAT(refusal(wrong), HasSubstr("give rows that divide the elements")) << rows;
  }
}

TEST_F(EngineFactors, AreKeptInFp32) {
  ParameterSpec narrow = spec();
  narrow.formats[2] = state_format(Format::kBF16);
  EXPECT_THAT(refusal(narrow), HasSubstr("exp_avg_sq_col of matrix is to be bf16"));

  Engine engine({}, nullptr);
  engine.add_parameters({spec()}, nullptr);
  auto formats = spec().formats;
  formats[0] = state_format(Format::kSym8);
  engine.set_formats(0, formats);
  formats[1] = state_format(Format::kBF16);
  EXPECT_THROW(engine.set_formats(0, formats), Error);
  EXPECT_EQ(engine.view(0).spec->formats[1], StateFormat{});
}

TEST_F(EngineFactors, TakeAValueForEachRowAndColumn) {
  Engine engine({}, nullptr);
  engine.add_parameters({spec()}, nullptr);
  EXPECT_EQ(engine.memory().host_state, 4 * (weight_.size() + kRows + kColumns));
}

TEST_F(EngineFactors, DoNotGoWithAMaximumForEachElement) {
  ParameterSpec wrong = spec();
  wrong.hyper[5] = 1;
  EXPECT_THAT(refusal(wrong), HasSubstr("amsgrad"));
}

}  // namespace
}  // namespace outboard
