// The measuring pass against the element-by-element reference: every rule that needs norms, layout,
// gradient type and state format on every target; any cut into ranges and any number of threads.
#include "cpu_kernels/measure.h"

#include <gtest/gtest.h>

#include "cpu_kernels/parallel.h"
#include "cpu_kernels/step_fixture.h"
#include "outboard/error.h"
#include "support/catalogue.h"
#include "support/reference_norms.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::reference_scalars;

constexpr const char* kStateFormats[] = {"fp32", "bf16", "8bit"};
constexpr DType kGradientTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

/// The step's scalars, measured in ranges of `grain` elements.
RuleScalars measure(const ParameterUpdate& update, int threads, size_t grain) {
  ParameterNorms norms(update);
  Arena(threads).run(update.elements, grain,
                     [&](size_t first, size_t last) { norms.run(first, last); });
  return norms.scalars();
}

template <class Rule>
class MeasureTest : public ::testing::Test {
 protected:
  static const RuleInfo& rule() { return rule_named(Rule::kName); }

  static std::vector<double> hyper(double max_unorm) {
    std::vector<double> values = default_hyper(rule());
    values[Rule::kWeightDecay] = 0.1;
    values[Rule::kMaxUnorm] = max_unorm;
    return values;
  }

  static void expect_equals_reference(const StepCase& c, uint64_t seed) {
    const StepArrays arrays(c, seed);
    const std::vector<uint8_t> before = arrays.bytes();
    const RuleScalars expected = reference_scalars(arrays.update());
    EXPECT_FALSE(expected == arrays.update().scalars) << "norms that change nothing test nothing";
    for_each_target([&] {
      EXPECT_TRUE(expected == measure(arrays.update(), 1, kNormSegmentElements))
          << c.rule->name << ", weight " << c.layout.name << ", gradient "
          << name_of(c.gradient_type) << ", elements " << c.elements << ", seed " << seed;
    });
    EXPECT_TRUE(before == arrays.bytes()) << "measuring stored something";
    EXPECT_TRUE(arrays.is_intact());
  }
};
TYPED_TEST_SUITE(MeasureTest, ::outboard::testing::NormRules, ::outboard::testing::CatalogueNames);

TYPED_TEST(MeasureTest, EqualsTheReferenceForEveryLayoutGradientAndFormat) {
  uint64_t seed = 0;
  for (const Layout& layout : kLayouts) {
    for (const DType gradient_type : kGradientTypes) {
      for (const char* format : kStateFormats) {
        for (const double max_unorm : {0.0, 1e-4}) {
          const StepCase c = {&this->rule(),
                              this->hyper(max_unorm),
                              layout,
                              gradient_type,
                              state_formats_named(format),
                              kNormSegmentElements + 3 * kTileElements + 77,
                              seed % 7};
          this->expect_equals_reference(c, ++seed);
        }
      }
    }
  }
}

TYPED_TEST(MeasureTest, EqualsTheReferenceAroundTilesAndSegments) {
  uint64_t seed = 100;
  for (const size_t whole : {size_t{0}, kTileElements, kNormSegmentElements}) {
    for (const size_t elements : {whole + 1, whole + kTileElements - 1, whole + kTileElements}) {
      std::vector<double> hyper = this->hyper(0);
      hyper[TypeParam::kEps] = 0;  // what lies behind the end is 0 / 0 and must not be summed
      const StepCase c = {&this->rule(),
                          hyper,
                          kLayouts[seed % 6],
                          kGradientTypes[seed % 3],
                          state_formats_named("8bit"),
                          elements};
      this->expect_equals_reference(c, ++seed);
    }
  }
}

TYPED_TEST(MeasureTest, RangesAndThreadsNeverChangeABit) {
  const StepCase c = {&this->rule(),
                      this->hyper(0),
                      kLayouts[2],
                      DType::kBF16,
                      state_formats_named("8bit"),
                      9 * kNormSegmentElements + 1003};
  const StepArrays arrays(c, 5);
  const RuleScalars expected = reference_scalars(arrays.update());
  for (const int threads : {1, 2, 3}) {
    for (const size_t segments : {1, 2, 5, 100}) {
      EXPECT_TRUE(expected == measure(arrays.update(), threads, segments * kNormSegmentElements))
          << threads << " " << segments;
    }
  }
}

TYPED_TEST(MeasureTest, NothingToMeasureGivesTheScalarsAsTheyAre) {
  ParameterUpdate update = {};
  update.rule = this->rule().id;
  update.scalars = this->rule().scalars(this->hyper(0.5), 1, 1.0);
  EXPECT_TRUE(update.scalars == ParameterNorms(update).scalars());
}

TEST(Measure, RefusesRulesThatNeedNoNorms) {
  ParameterUpdate update = {};
  update.rule = RuleId::kAdamW;
  EXPECT_THROW(ParameterNorms{update}, Error);
}

}  // namespace
}  // namespace outboard::cpu
