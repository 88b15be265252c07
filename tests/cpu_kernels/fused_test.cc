// The fused kernels: they are found for what they are made for, do it alone with usual numbers,
// leave special tiles to the general passes, and together with those equal the reference bit by
// bit.
#include "cpu_kernels/fused.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

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
constexpr const char* kFusedStates[] = {"8bit", "4bit", "8bit/4bit"};
constexpr const char* kFusedLayouts[] = {"f32", "bf16 split", "bf16 split8", "bf16 stochastic"};

/// What a kernel is made for.
struct Fused {
  const char* states;
  const char* layout;
};

std::vector<Fused> all_fused() {
  std::vector<Fused> all;
  for (const char* states : kFusedStates) {
    for (const char* layout : kFusedLayouts) all.push_back({states, layout});
  }
  return all;
}

void set_hyper(StepCase& c, std::string_view key, double value) {
  for (size_t i = 0; i < c.hyper.size(); ++i) {
    if (c.rule->hyper_parameters[i].key == key) c.hyper[i] = value;
  }
}

StepCase fused_case(const char* rule_name, const Fused& fused, size_t elements = kElements) {
  const RuleInfo& rule = rule_named(rule_name);
  const auto* layout = std::find_if(std::begin(kLayouts), std::end(kLayouts), [&](const Layout& l) {
    return std::string_view(l.name) == fused.layout;
  });
  StepCase c = {.rule = &rule,
                .hyper = default_hyper(rule),
                .layout = *layout,
                .gradient_type = layout->weight,
                .formats = state_formats_named(fused.states),
                .elements = elements,
                .shift = 3};
  set_hyper(c, "weight_decay", 0.1);
  return c;
}

bool is_f32(const ParameterUpdate& u) { return u.weight_type == DType::kF32; }

void set_gradient(const StepArrays& arrays, size_t i, float value) {
  const ParameterUpdate& u = arrays.update();
  void* gradient = const_cast<void*>(u.gradient);
  if (is_f32(u)) {
    static_cast<float*>(gradient)[i] = value;
  } else {
    static_cast<uint16_t*>(gradient)[i] = quant::bf16_nearest(value);
  }
}

void set_weight(const StepArrays& arrays, size_t i, float value) {
  testing::reference_store(arrays.update(), i, value);
}

/// A NaN with a payload, which a step must not keep where weights are split.
void set_weight_nan(const StepArrays& arrays, size_t i) {
  const ParameterUpdate& u = arrays.update();
  if (is_f32(u)) {
    static_cast<uint32_t*>(u.weight)[i] = 0x7FC11234;
    return;
  }
  static_cast<uint16_t*>(u.weight)[i] = 0x7FC1;
  if (u.master_format == MasterFormat::kSplit) static_cast<int16_t*>(u.master)[i] = 0x1234;
  if (u.master_format == MasterFormat::kSplit8) static_cast<int8_t*>(u.master)[i] = 0x12;
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

/// Everything that a step changes, as numbers: the sign of a NaN weight is the CPU's choice, and so
/// is its payload where it is not split.
std::vector<float> results(const StepArrays& arrays) {
  const ParameterUpdate& u = arrays.update();
  std::vector<float> all;
  for (size_t i = 0; i < u.elements; ++i) {
    const float weight = testing::reference_master(u, i);
    all.push_back(std::isnan(weight) ? std::numeric_limits<float>::quiet_NaN() : weight);
    if (is_f32(u)) continue;
    all.push_back(static_cast<float>(static_cast<const uint16_t*>(u.weight)[i] & 0x7FFF));
    if (u.master_format == MasterFormat::kSplit) {
      all.push_back(static_cast<const int16_t*>(u.master)[i]);
    }
    if (u.master_format == MasterFormat::kSplit8) {
      all.push_back(static_cast<const int8_t*>(u.master)[i]);
    }
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
        << c.rule->name << " " << c.layout.name << " " << c.elements;
    EXPECT_TRUE(arrays.is_intact());
  });
}

/// Second moments at and beside the levels of root4, where rounding has nothing to draw or almost
/// so, and first moments at every level and beside the thresholds of nf4.
void set_levels(const StepArrays& arrays) {
  set_usual(arrays);
  const ParameterUpdate& u = arrays.update();
  for (size_t k = 0; k < 2; ++k) {
    const size_t codes = u.formats[k].code_bytes(kTileElements);
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

/// The largest weights, alone and beside an infinity and a NaN.
void set_huge(const StepArrays& arrays) {
  set_usual(arrays);
  for (size_t i = 0; i < 3 * kTileElements; ++i) {
    const float huge = std::bit_cast<float>(0x7F7EFFF0u + 83 * static_cast<uint32_t>(i));
    set_weight(arrays, i, i % 2 == 0 ? huge : -huge);
  }
  set_weight(arrays, kTileElements + 70, -std::numeric_limits<float>::infinity());
  set_weight_nan(arrays, 2 * kTileElements + 71);
}

class FusedTest : public ::testing::TestWithParam<Fused> {};

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

TEST_P(FusedTest, EqualsTheReferenceForTheLargestWeights) {
  StepCase c = fused_case("AdamW", GetParam());
  expect_equals_reference(c, set_huge);
  set_hyper(c, "weight_decay", -1);  // so that they grow by a thousandth of themselves
  expect_equals_reference(c, set_huge);
}

TEST_P(FusedTest, EqualsTheReferenceWithoutEpsilon) {
  StepCase c = fused_case("AdamW", GetParam());
  set_hyper(c, "eps", 0);
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
  EXPECT_FALSE(has_kernel(
      [](ParameterUpdate& u) { u.gradient_type = is_f32(u) ? DType::kBF16 : DType::kF32; }));
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

INSTANTIATE_TEST_SUITE_P(Kernels, FusedTest, ::testing::ValuesIn(all_fused()),
                         [](const auto& info) {
                           std::string name =
                               info.param.states + std::string("_") + info.param.layout;
                           for (char& c : name) c = c == ' ' || c == '/' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace outboard::cpu
