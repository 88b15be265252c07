// The split8 master: every target against the scalar definition, any cut of the elements, and small
// updates that must not be lost.
#include "cpu_kernels/transfer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "cpu_kernels/step.h"
#include "quant/random.h"
#include "quant/rounding.h"
#include "support/numbers.h"
#include "support/rule_cases.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::same_bits;

/// Zero, subnormals, 1, the borders of exponents, the largest numbers, infinity and NaN.
constexpr std::array<uint16_t, 16> kHighs = {0x0000, 0x0001, 0x007F, 0x0080, 0x3F7F, 0x3F80,
                                             0x3FFF, 0x4B12, 0x7F7E, 0x7F7F, 0x7F80, 0x7F81,
                                             0x7FC0, 0x7FFF, 0x5555, 0x00FF};
constexpr RandomContext kRandom = {.key = {7, 9}, .step = 5, .stream = 0};

struct Split8Array {
  explicit Split8Array(size_t elements) : high(elements), low(elements) {}
  bool operator==(const Split8Array&) const = default;
  std::vector<uint16_t> high;
  std::vector<int8_t> low;
};

Transfer split8() { return resolve_transfer(DType::kBF16, DType::kBF16, MasterFormat::kSplit8); }

/// All values of the lower half behind both signs of `high`.
std::vector<float> all_lower_halves(uint16_t high) {
  std::vector<float> values;
  for (const uint32_t sign : {0u, quant::kSignMask}) {
    for (uint32_t low = 0; low < 65536; ++low) {
      values.push_back(exact::from_bits(sign | static_cast<uint32_t>(high) << 16 | low));
    }
  }
  return values;
}

TEST(Split8Transfer, StoresWhatTheScalarDefinitionSaysOnEveryTarget) {
  constexpr uint64_t kFirst = 3 * kTileElements;
  for (const uint16_t high : kHighs) {
    const std::vector<float> values = all_lower_halves(high);
    Split8Array expected(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const uint32_t draw = random16(kRandom.key, kRandom.step, kRandom.stream, kFirst + i);
      const quant::Split8F32 split = quant::split8_f32(values[i], draw);
      expected.high[i] = split.high;
      expected.low[i] = split.low;
    }
    for_each_target([&] {
      Split8Array stored(values.size());
      split8().store_weight(values.data(), values.size(), kRandom, kFirst, stored.high.data(),
                            stored.low.data());
      EXPECT_TRUE(stored == expected) << "upper half " << high;
    });
  }
}

TEST(Split8Transfer, LoadsWhatTheScalarDefinitionSaysOnEveryTarget) {
  Split8Array pairs(size_t{1} << 17);
  std::vector<float> expected(pairs.high.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    pairs.high[i] = static_cast<uint16_t>(i % 2 << 15 | (i >> 9) * 257 % 32768);
    pairs.low[i] = static_cast<int8_t>(i / 2 % 256);
    expected[i] = quant::join8_f32(pairs.high[i], pairs.low[i]);
  }
  for_each_target([&] {
    std::vector<float> loaded(expected.size());
    split8().load_weight(pairs.high.data(), pairs.low.data(), loaded.size(), loaded.data());
    EXPECT_EQ(std::memcmp(loaded.data(), expected.data(), loaded.size() * sizeof(float)), 0);
  });
}

TEST(Split8Transfer, AnyCutIntoTilesStoresTheSameBytes) {
  testing::Numbers numbers(4);
  const std::vector<float> values = numbers.many(9 * kTileElements, &testing::Numbers::wild);
  Split8Array whole(values.size());
  split8().store_weight(values.data(), values.size(), kRandom, 0, whole.high.data(),
                        whole.low.data());
  Split8Array cut(values.size());
  for (size_t first = values.size(); first > 0;) {  // the last tiles first
    const size_t count = std::min(first, first % 3 == 0 ? 2 * kTileElements : kTileElements);
    first -= count;
    split8().store_weight(values.data() + first, count, kRandom, first, cut.high.data() + first,
                          cut.low.data() + first);
  }
  EXPECT_TRUE(whole == cut);
}

/// The mean of 1,024 weights that start at `start`, after 2,048 steps of SGD that subtract `update`
/// from each.
double mean_after_small_updates(float start, float update) {
  constexpr size_t kElements = 4 * kTileElements;
  const RuleInfo& rule = rule_named("SGD");
  std::vector<double> hyper = default_hyper(rule);
  for (size_t i = 0; i < hyper.size(); ++i) {
    if (rule.hyper_parameters[i].key == "lr") hyper[i] = 1;
  }
  const quant::Split8F32 first = quant::split8_f32(start, 0);
  Split8Array weights(kElements);
  std::ranges::fill(weights.high, first.high);
  std::ranges::fill(weights.low, first.low);
  const std::vector<float> gradient(kElements, update);
  ParameterUpdate step{.rule = rule.id,
                       .scalars = {},
                       .elements = kElements,
                       .gradient = gradient.data(),
                       .weight = weights.high.data(),
                       .weight_type = DType::kBF16,
                       .master_format = MasterFormat::kSplit8,
                       .master = weights.low.data(),
                       .random_key = random_key(1, 1)};
  for (step.step = 1; step.step <= 2048; ++step.step) {
    step.scalars = rule.scalars(hyper, step.step, 1.0);
    ResolvedUpdate(step).run(0, kElements);
  }
  double sum = 0;
  for (size_t i = 0; i < kElements; ++i) {
    sum += quant::join8_f32(weights.high[i], weights.low[i]);
  }
  return sum / kElements;
}

// A 32nd of what 24 bits resolve at 1: nearest rounding would never move. The second start is the
// last number before the upper half changes, where a lower part that saturates would stop.
TEST(Split8Transfer, SmallUpdatesMoveTheMeanInEitherDirection) {
  constexpr float kUpdate = 0x1p-20f;
  for (const float start : {1.0f, exact::from_bits(0x3F807F00u), exact::from_bits(0x3F808000u)}) {
    for (const float sign : {1.0f, -1.0f}) {
      for (const float update : {kUpdate, -kUpdate}) {
        const double expected = static_cast<double>(start * sign) - 2048.0 * update;
        // One weight's error is that of 2,048 draws, at most 2^-15 * sqrt(2048 / 4): 22.6 steps;
        // that of the mean is 32 times less, and five times that is seldom.
        EXPECT_NEAR(mean_after_small_updates(start * sign, update), expected, 0x1p-15 * 3.5)
            << start * sign << " " << update;
      }
    }
  }
}

}  // namespace
}  // namespace outboard::cpu
