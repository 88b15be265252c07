// The CPU step against the element-by-element reference: every rule, layout, gradient type and
// state format on every target; every size up to two tiles; any cut into chunks and any number of
// threads.
#include "cpu_kernels/step.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cpu_kernels/parallel.h"
#include "cpu_kernels/step_fixture.h"
#include "outboard/error.h"
#include "support/catalogue.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;

constexpr const char* kStateFormats[] = {"fp32", "bf16",     "8bit",          "4bit",
                                         "fp8",  "dynamic8", "dynamic8-2048", "ao4"};
constexpr DType kGradientTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

/// The defaults with every flag on that the rule accepts, and momentum where there is one.
std::vector<double> busy_hyper(const RuleInfo& rule) {
  std::vector<double> hyper = default_hyper(rule);
  for (size_t i = 0; i < hyper.size(); ++i) {
    if (rule.hyper_parameters[i].is_flag) hyper[i] = 1;
    if (rule.hyper_parameters[i].key == "momentum") hyper[i] = 0.9;
    if (rule.hyper_parameters[i].key == "weight_decay") hyper[i] = 0.1;
    if (rule.hyper_parameters[i].is_flag && rule.check(hyper) != nullptr) hyper[i] = 0;
  }
  return hyper;
}

void expect_equals_reference(const StepCase& c, uint64_t seed) {
  const std::vector<uint8_t> expected = reference_bytes(c, seed);
  for_each_target([&] {
    const StepArrays arrays(c, seed);
    ResolvedUpdate(arrays.update()).run(0, c.elements);
    EXPECT_TRUE(expected == arrays.bytes())
        << c.rule->name << ", weight " << c.layout.name << ", gradient " << name_of(c.gradient_type)
        << ", state " << format_info(c.formats.unsigned_state.format).name << ", elements "
        << c.elements << ", shift " << c.shift << ", seed " << seed;
    EXPECT_TRUE(arrays.is_intact());
  });
}

template <class Rule>
class StepTest : public ::testing::Test {};
TYPED_TEST_SUITE(StepTest, ::outboard::testing::AllRules, ::outboard::testing::CatalogueNames);

TYPED_TEST(StepTest, EqualsTheReferenceForEveryLayoutGradientAndFormat) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  uint64_t seed = 0;
  for (const Layout& layout : kLayouts) {
    for (const DType gradient_type : kGradientTypes) {
      for (const char* format : kStateFormats) {
        const StepCase c = {&rule,
                            busy_hyper(rule),
                            layout,
                            gradient_type,
                            state_formats_named(format),
                            2 * kTileElements + 77,
                            seed % 7};
        expect_equals_reference(c, ++seed);
      }
    }
  }
}

TYPED_TEST(StepTest, EqualsTheReferenceForEverySizeUpToTwoTiles) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  for (size_t elements = 1; elements <= 2 * kTileElements + 1; ++elements) {
    const Layout& layout = kLayouts[elements % std::size(kLayouts)];
    const StepCase c = {&rule,
                        default_hyper(rule),
                        layout,
                        kGradientTypes[elements % 3],
                        state_formats_named(kStateFormats[elements / 2 % std::size(kStateFormats)]),
                        elements,
                        elements % 5};
    expect_equals_reference(c, elements);
    if (this->HasFailure()) return;
  }
}

TYPED_TEST(StepTest, ChunksAndThreadsNeverChangeABit) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  for (const Layout& layout : kLayouts) {
    const StepCase c = {&rule,
                        busy_hyper(rule),
                        layout,
                        DType::kBF16,
                        state_formats_named("bf16"),
                        50 * kTileElements + 3};
    const std::vector<uint8_t> expected = reference_bytes(c, 5);
    for (const int threads : {1, 2, 3}) {
      for (const size_t tiles : {1, 7, 64}) {
        const StepArrays arrays(c, 5);
        const ResolvedUpdate update(arrays.update());
        Arena(threads).run(c.elements, tiles * update.unit_elements(),
                           [&](size_t first, size_t last) { update.run(first, last); });
        EXPECT_TRUE(expected == arrays.bytes()) << layout.name << " " << threads << " " << tiles;
      }
    }
  }
}

TEST(Step, RefusesMastersThatCannotHoldTheWeight) {
  const auto try_layout = [](DType weight, MasterFormat master) {
    ParameterUpdate update = {};
    update.weight_type = weight;
    update.master_format = master;
    const ResolvedUpdate resolved(update);
  };
  EXPECT_THROW(try_layout(DType::kBF16, MasterFormat::kWeight), Error);
  EXPECT_THROW(try_layout(DType::kF16, MasterFormat::kSplit), Error);
  EXPECT_THROW(try_layout(DType::kF16, MasterFormat::kSplit8), Error);
  EXPECT_THROW(try_layout(DType::kF32, MasterFormat::kSplit8), Error);
  EXPECT_THROW(try_layout(DType::kF32, MasterFormat::kStochastic), Error);
  EXPECT_NO_THROW(try_layout(DType::kF16, MasterFormat::kF32));
}

TEST(Step, NothingToDoTouchesNothing) {
  const StepCase c = {&rule_named("AdamW"), default_hyper(rule_named("AdamW")), kLayouts[0],
                      DType::kF32,          state_formats_named("fp32"),        300};
  const StepArrays arrays(c, 1);
  const std::vector<uint8_t> before = arrays.bytes();
  ResolvedUpdate(arrays.update()).run(256, 256);
  EXPECT_TRUE(before == arrays.bytes());
}

/// The mean of a second moment that starts at 1 after 3,000 steps with squared gradients of 4.
double second_moment_after_3000_steps(Format format) {
  constexpr size_t kElements = kTileElements;
  const RuleInfo& rule = rule_named("AdamW");
  std::vector<float> weight(kElements, 1.0f);
  std::vector<float> gradient(kElements, 2.0f);
  std::vector<float> m(kElements, 2.0f);
  std::vector<float> v(kElements, 1.0f);
  std::vector<uint16_t> codes(kElements);
  const Codec codec_now = codec(format);
  codec_now.encode(v.data(), 0, kElements, kElements, {}, 0, {codes.data(), nullptr});
  ParameterUpdate update = {};
  update.rule = rule.id;
  update.elements = kElements;
  update.gradient = gradient.data();
  update.weight = weight.data();
  update.states = {StateArray{m.data(), nullptr}, StateArray{codes.data(), nullptr}};
  update.formats = {state_format(Format::kF32), state_format(format)};
  update.random_key = random_key(1, 1);
  for (update.step = 1; update.step <= 3000; ++update.step) {
    update.scalars = rule.scalars(default_hyper(rule), update.step, 1.0);
    ResolvedUpdate(update).run(0, kElements);
  }
  codec_now.decode({codes.data(), nullptr}, 0, kElements, v.data());
  double sum = 0;
  for (const float value : v) sum += value;
  return sum / kElements;
}

TEST(Step, StochasticSecondMomentFollowsWhereNearestStalls) {
  const double exact = 4 - 3 * std::pow(0.999, 3000);  // 3.851
  // Per element the error is a few bf16 ulps (2^-7 each); the mean of 256 is 16 times closer.
  EXPECT_NEAR(second_moment_after_3000_steps(Format::kBF16Stochastic), exact, 0.03);
  EXPECT_EQ(second_moment_after_3000_steps(Format::kBF16), 1.0);
}

}  // namespace
}  // namespace outboard::cpu
