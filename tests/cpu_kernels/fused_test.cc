// The fused kernels: they are found for what they are made for, do it alone with usual numbers,
// leave special tiles to the general passes, and together with those equal the reference bit by
// bit.
#include "cpu_kernels/fused.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "cpu_kernels/step_fixture.h"
#include "cpu_kernels/targets.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::Numbers;

constexpr size_t kElements = 12 * kTileElements + 77;
constexpr const char* kFusedRules[] = {"AdamW", "Adam"};
constexpr const char* kFusedStates[] = {"8bit", "4bit"};

StepCase fused_case(const char* rule_name, const char* states, size_t elements = kElements) {
  const RuleInfo& rule = rule_named(rule_name);
  std::vector<double> hyper = default_hyper(rule);
  for (size_t i = 0; i < hyper.size(); ++i) {
    if (rule.hyper_parameters[i].key == "weight_decay") hyper[i] = 0.1;
  }
  return {.rule = &rule,
          .hyper = hyper,
          .layout = {"bf16 split", DType::kBF16, MasterFormat::kSplit},
          .gradient_type = DType::kBF16,
          .formats = state_formats_named(states),
          .elements = elements,
          .shift = 3};
}

void set_gradient(const StepArrays& arrays, size_t i, float value) {
  const_cast<uint16_t*>(static_cast<const uint16_t*>(arrays.update().gradient))[i] =
      quant::bf16_nearest(value);
}

void set_weight(const StepArrays& arrays, size_t i, float value) {
  testing::reference_store(arrays.update(), i, value);
}

/// A NaN with a payload, which a step must not keep.
void set_weight_nan(const StepArrays& arrays, size_t i) {
  static_cast<uint16_t*>(arrays.update().weight)[i] = 0x7FC1;
  static_cast<int16_t*>(arrays.update().master)[i] = 0x1234;
}

/// Gradients without special numbers.
void set_usual(const StepArrays& arrays) {
  Numbers numbers(99);
  for (size_t i = 0; i < arrays.update().elements; ++i) set_gradient(arrays, i, numbers.spread());
}

/// Where element `first`, the first of a block, has its codes, and those of the elements after it.
uint8_t* codes_at(const ParameterUpdate& u, size_t state, size_t first) {
  return static_cast<uint8_t*>(u.states[state].codes) + u.formats[state].code_bytes(first);
}

/// State of zeros and gradients of `value` in one tile.
void set_fresh(const StepArrays& arrays, size_t tile, float value) {
  const ParameterUpdate& u = arrays.update();
  const size_t first = tile * kTileElements;
  for (size_t i = first; i < first + kTileElements; ++i) {
    set_gradient(arrays, i, i % 3 == 0 ? 0.0f : value);
  }
  for (size_t k = 0; k < 2; ++k) {
    std::memset(codes_at(u, k, first), 0, u.formats[k].code_bytes(kTileElements));
    std::memset(u.states[k].scales + first / 128, 0, 2 * sizeof(float));
  }
}

/// One awkward thing per tile; tiles 0, 4 and 9 stay usual.
void set_special(const StepArrays& arrays) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  set_usual(arrays);
  set_gradient(arrays, 1 * kTileElements + 130, std::numeric_limits<float>::quiet_NaN());
  set_gradient(arrays, 2 * kTileElements + 5, kInfinity);
  set_fresh(arrays, 3, 1e-15f);
  set_fresh(arrays, 5, 1e-18f);  // second moments become subnormal
  set_fresh(arrays, 6, 0.0f);
  arrays.update().states[0].scales[7 * kTileElements / 128] = std::bit_cast<float>(0x7FC00000u);
  arrays.update().states[1].scales[8 * kTileElements / 128 + 1] = kInfinity;
  set_weight_nan(arrays, 10 * kTileElements + 200);
  set_weight(arrays, 10 * kTileElements + 201, -kInfinity);
  set_fresh(arrays, 11, 1e-33f);  // the first moment's scale is below the usual ones
}

/// Everything that a step changes, as numbers: the sign of a NaN weight is the CPU's choice.
std::vector<float> results(const StepArrays& arrays) {
  const ParameterUpdate& u = arrays.update();
  std::vector<float> all;
  for (size_t i = 0; i < u.elements; ++i) {
    all.push_back(testing::reference_master(u, i));
    all.push_back(static_cast<float>(static_cast<const uint16_t*>(u.weight)[i] & 0x7FFF));
    all.push_back(static_cast<const int16_t*>(u.master)[i]);
  }
  for (size_t k = 0; k < 2; ++k) {
    const auto* codes = static_cast<const uint8_t*>(u.states[k].codes);
    all.insert(all.end(), codes, codes + u.formats[k].code_bytes(u.elements));
    const float* scales = u.states[k].scales;
    all.insert(all.end(), scales, scales + u.formats[k].scale_count(u.elements));
  }
  return all;
}

template <class Prepare>
void expect_equals_reference(const StepCase& c, const Prepare& prepare) {
  const StepArrays expected(c, 7);
  prepare(expected);
  for (int step = 0; step < 3; ++step) testing::reference_step(expected.update());
  for_each_target([&] {
    const StepArrays arrays(c, 7);
    prepare(arrays);
    for (int step = 0; step < 3; ++step) ResolvedUpdate(arrays.update()).run(0, c.elements);
    EXPECT_TRUE(testing::same_bits(results(expected), results(arrays)))
        << c.rule->name << " " << c.elements;
    EXPECT_TRUE(arrays.is_intact());
  });
}

/// Second moments at and beside the levels of root4, where rounding has nothing to draw or almost
/// so, and first moments at every level and beside the thresholds of nf4.
void set_levels(const StepArrays& arrays) {
  set_usual(arrays);
  const ParameterUpdate& u = arrays.update();
  const size_t codes = u.formats[0].code_bytes(kTileElements);
  for (size_t k = 0; k < 2; ++k) {
    for (size_t i = 0; i < codes; ++i) {
      codes_at(u, k, 0)[i] = static_cast<uint8_t>(i % 128 + (k == 1 && i % 128 == 0 ? 1 : 0));
    }
    u.states[k].scales[0] = 1.0f;
    u.states[k].scales[1] = 0.37f;
  }
  for (size_t i = 0; i < kTileElements; ++i) {
    set_gradient(arrays, i, i % 5 == 0 ? 1e-4f * static_cast<float>(i % 7) : 0.0f);
  }
}

/// Second moments that are nothing, or far below the first level, beside usual ones.
void set_small(const StepArrays& arrays) {
  set_usual(arrays);
  const ParameterUpdate& u = arrays.update();
  std::memset(codes_at(u, 1, 0), 0, u.formats[1].code_bytes(kTileElements));
  for (size_t i = 0; i < kTileElements; i += 2) {
    set_gradient(arrays, i, i % 4 == 0 ? 0.0f : std::ldexp(1.0f, -static_cast<int>(i % 61)));
  }
}

class FusedTest : public ::testing::TestWithParam<const char*> {};

TEST_P(FusedTest, EqualsTheReferenceForUsualNumbers) {
  for (const char* rule : kFusedRules) {
    expect_equals_reference(fused_case(rule, GetParam()), set_usual);
  }
}

TEST_P(FusedTest, EqualsTheReferenceForSpecialNumbers) {
  for (const char* rule : kFusedRules) {
    expect_equals_reference(fused_case(rule, GetParam()), set_special);
  }
}

TEST_P(FusedTest, EqualsTheReferenceAtEveryLevel) {
  expect_equals_reference(fused_case("AdamW", GetParam()), set_levels);
}

TEST_P(FusedTest, EqualsTheReferenceForSmallSecondMoments) {
  expect_equals_reference(fused_case("AdamW", GetParam()), set_small);
}

TEST_P(FusedTest, EqualsTheReferenceWithoutEpsilon) {
  StepCase c = fused_case("AdamW", GetParam());
  for (size_t i = 0; i < c.hyper.size(); ++i) {
    if (c.rule->hyper_parameters[i].key == "eps") c.hyper[i] = 0;
  }
  expect_equals_reference(c, set_special);  // 0 / 0 in the fresh tile
}

TEST_P(FusedTest, EqualsTheReferenceForEverySizeAroundATile) {
  for (const size_t elements : {1, 127, 128, 129, 255, 256, 257, 384, 511, 512, 513}) {
    expect_equals_reference(fused_case("AdamW", GetParam(), elements), set_usual);
  }
}

bool has_fused_targets() { return chosen_target().starts_with("AVX") || chosen_target() == "NEON"; }

TEST_P(FusedTest, UpdatesUsualTilesAloneAndStopsAtSpecialOnes) {
  const StepArrays arrays(fused_case("AdamW", GetParam()), 7);
  set_special(arrays);
  const FusedKernel kernel = fused_kernel(arrays.update());
  ASSERT_NE(kernel, nullptr);
  if (!has_fused_targets()) GTEST_SKIP() << "no fused multiply-add on " << chosen_target();
  constexpr size_t kTile = kTileElements;
  EXPECT_EQ(kernel(arrays.update(), 0, 12 * kTile), kTile);
  EXPECT_EQ(kernel(arrays.update(), 3 * kTile, 12 * kTile), 7 * kTile);
  EXPECT_EQ(kernel(arrays.update(), 8 * kTile, 12 * kTile), 8 * kTile);
  EXPECT_EQ(kernel(arrays.update(), 9 * kTile, 10 * kTile), 10 * kTile);
  EXPECT_EQ(kernel(arrays.update(), 4 * kTile, 4 * kTile), 4 * kTile);
}

TEST_P(FusedTest, LeavesASpecialTileUntouched) {
  const StepArrays arrays(fused_case("AdamW", GetParam()), 7);
  set_special(arrays);
  const std::vector<uint8_t> before = arrays.bytes();
  const FusedKernel kernel = fused_kernel(arrays.update());
  ASSERT_NE(kernel, nullptr);
  EXPECT_EQ(kernel(arrays.update(), kTileElements, 2 * kTileElements), kTileElements);
  EXPECT_TRUE(before == arrays.bytes());
}

TEST_P(FusedTest, IsNotUsedForWhatItCannotDo) {
  const StepArrays arrays(fused_case("AdamW", GetParam()), 7);
  const auto has_kernel = [&](auto change) {
    ParameterUpdate update = arrays.update();
    change(update);
    return fused_kernel(update) != nullptr;
  };
  EXPECT_TRUE(has_kernel([](ParameterUpdate&) {}));
  EXPECT_FALSE(has_kernel([](ParameterUpdate& u) { u.rule = RuleId::kLion; }));
  EXPECT_FALSE(has_kernel([](ParameterUpdate& u) { u.gradient_type = DType::kF32; }));
  EXPECT_FALSE(has_kernel([](ParameterUpdate& u) { u.master_format = MasterFormat::kF32; }));
  EXPECT_FALSE(has_kernel([](ParameterUpdate& u) { u.formats[1].block_elements = 64; }));
  EXPECT_FALSE(has_kernel(
      [](ParameterUpdate& u) { u.formats[1] = state_format(Format::kRoot8Stochastic); }));
  EXPECT_FALSE(has_kernel([](ParameterUpdate& u) {
    std::vector<double> hyper = default_hyper(rule_named("AdamW"));
    hyper[1] = 0.3;  // beta1
    u.scalars = rule_named("AdamW").scalars(hyper, 1, 1.0);
  }));
}

INSTANTIATE_TEST_SUITE_P(States, FusedTest, ::testing::ValuesIn(kFusedStates),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace outboard::cpu
