// The scalar conversions: golden values, exhaustive round trips, edges and the mean of stochastic
// rounding.
#include "quant/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/numbers.h"
#include "support/safetensors.h"

namespace outboard::quant {
namespace {

using ::outboard::testing::Numbers;
using ::outboard::testing::Safetensors;
using ::outboard::testing::same_bits;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// `value` as a split8 master holds it.
float rejoined(float value, uint32_t random) {
  const Split8F32 split = split8_f32(value, random);
  return join8_f32(split.high, split.low);
}

/// Patterns whose upper halves are all values and whose lower halves sit around the thresholds of a
/// rounding.
template <class Check>
void for_each_awkward_pattern(const Check& check) {
  for (uint32_t high = 0; high < 65536; ++high) {
    for (const uint32_t low :
         {0u, 1u, 0x0FFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xF000u, 0xFFFFu}) {
      check(exact::from_bits(high << 16 | low));
    }
  }
}

TEST(Rounding, EqualsGoldenValues) {
  const Safetensors golden = Safetensors::golden("integer_recipes");
  const auto x = golden.values<float>("x");
  const auto nearest = golden.values<uint16_t>("bf16_rne");
  const auto stochastic = golden.values<uint16_t>("bf16_sr");
  const auto random = golden.values<uint16_t>("rand16");
  const auto high = golden.values<uint16_t>("split_hi");
  const auto low = golden.values<int16_t>("split_lo");
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(bf16_nearest(x[i]), nearest[i]) << i;
    ASSERT_EQ(bf16_stochastic(x[i], random[i]), stochastic[i]) << i;
    ASSERT_EQ(split_f32(x[i]).high, high[i]) << i;
    ASSERT_EQ(split_f32(x[i]).low, low[i]) << i;
  }
}

TEST(Rounding, Bf16NearestIsTheCloserNeighbourAndEvenOnTies) {
  for_each_awkward_pattern([](float value) {
    if (!std::isfinite(value)) return;
    const uint16_t code = bf16_nearest(value);
    const uint16_t floor = static_cast<uint16_t>(exact::bits(value) >> 16);
    const double down = std::abs(static_cast<double>(value) - f32_from_bf16(floor));
    // Beyond the largest bf16 value stands 2^128, where infinity begins.
    const bool is_last = (floor & 0x7FFF) == 0x7F7F;
    const double above =
        is_last ? std::copysign(0x1p128, value) : f32_from_bf16(static_cast<uint16_t>(floor + 1));
    const double up = std::abs(above - static_cast<double>(value));
    const uint16_t expected =
        down < up || (down == up && floor % 2 == 0) ? floor : static_cast<uint16_t>(floor + 1);
    ASSERT_EQ(code, expected) << std::hexfloat << value;
  });
}

TEST(Rounding, NanStaysNanAndInfinityStaysInfinity) {
  for (const uint32_t pattern : {0x7F800001u, 0x7F80FFFFu, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu}) {
    const float nan = exact::from_bits(pattern);
    EXPECT_TRUE(std::isnan(f32_from_bf16(bf16_nearest(nan))));
    EXPECT_TRUE(std::isnan(f32_from_bf16(bf16_stochastic(nan, 0xFFFF))));
    EXPECT_TRUE(std::isnan(f32_from_f16(f16_nearest(nan))));
    EXPECT_TRUE(std::isnan(f32_from_bf16(split_f32(nan).high)));
    EXPECT_TRUE(std::isnan(join_f32(split_f32(nan).high, split_f32(nan).low)));
    EXPECT_TRUE(std::isnan(f32_from_bf16(split8_f32(nan, 0xFFFF).high)));
    EXPECT_TRUE(std::isnan(rejoined(nan, 0xFFFF)));
  }
  for (const float infinity : {kInfinity, -kInfinity}) {
    EXPECT_EQ(f32_from_bf16(bf16_nearest(infinity)), infinity);
    EXPECT_EQ(f32_from_bf16(bf16_stochastic(infinity, 0xFFFF)), infinity);
    EXPECT_EQ(f32_from_f16(f16_nearest(infinity)), infinity);
    EXPECT_EQ(join_f32(split_f32(infinity).high, split_f32(infinity).low), infinity);
    EXPECT_EQ(rejoined(infinity, 0xFFFF), infinity);
  }
}

TEST(Rounding, StochasticNeverMovesRepresentableValues) {
  for (uint32_t high = 0; high < 65536; ++high) {
    const float value = exact::from_bits(high << 16);
    if (std::isnan(value)) continue;
    ASSERT_EQ(bf16_stochastic(value, 0xFFFF), high);
  }
}

TEST(Rounding, StochasticKeepsFiniteValuesFinite) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_EQ(bf16_stochastic(largest, 0xFFFF), 0x7F7F);
  EXPECT_EQ(bf16_stochastic(-largest, 0xFFFF), 0xFF7F);
}

TEST(Rounding, StochasticRoundsUpAsOftenAsTheDiscardedBitsSay) {
  for (const uint32_t low : {1u, 0x4000u, 0x8000u, 0xFFFFu}) {
    const float value = exact::from_bits(0x3F800000u | low);
    uint32_t ups = 0;
    for (uint32_t random = 0; random < 65536; ++random) {
      ups += bf16_stochastic(value, random) == 0x3F81 ? 1 : 0;
    }
    EXPECT_EQ(ups, low);
  }
}

TEST(Rounding, SplitIsLosslessForEveryNumber) {
  for_each_awkward_pattern([](float value) {
    const SplitF32 split = split_f32(value);
    ASSERT_TRUE(same_bits(value, join_f32(split.high, split.low)));
  });
}

TEST(Rounding, SplitHighIsNearestExceptOnTies) {
  for_each_awkward_pattern([](float value) {
    const bool is_tie = (exact::bits(value) & 0xFFFF) == 0x8000;
    if (std::isnan(value) || is_tie) return;
    ASSERT_EQ(split_f32(value).high, bf16_nearest(value)) << std::hexfloat << value;
  });
  EXPECT_EQ(split_f32(exact::from_bits(0x3F808000u)).high, 0x3F81);  // away from zero
  EXPECT_EQ(split_f32(exact::from_bits(0x3F818000u)).high, 0x3F82);
}

TEST(Rounding, Split8HoldsOneOfTheTwoNumbersOf24BitsAroundTheValue) {
  for_each_awkward_pattern([](float value) {
    if (!std::isfinite(value)) return;
    const uint32_t below = exact::bits(value) & 0xFFFFFF00u;
    for (const uint32_t random : {0u, 1u, 0x80u, 0xFFu, 0xFF00u, 0xFFFFu}) {
      const bool is_up = (exact::bits(value) & 0xFF) + (random & 0xFF) > 0xFF;
      const bool is_last = (below & kMagnitudeMask) == kLastSplit8Bits;
      const float expected = exact::from_bits(below + (is_up && !is_last ? 256 : 0));
      ASSERT_TRUE(same_bits(expected, rejoined(value, random))) << std::hexfloat << value;
    }
  });
}

TEST(Rounding, Split8IsWithin2ToTheMinus15) {
  Numbers numbers(3);
  for (int i = 0; i < 100'000; ++i) {
    const float value = numbers.spread();
    const double error = std::abs(static_cast<double>(rejoined(value, numbers.bits())) - value);
    ASSERT_LT(error, 0x1p-15 * std::abs(value)) << std::hexfloat << value;
  }
}

TEST(Rounding, Split8HighIsTheNearestOfWhatIsHeld) {
  for_each_awkward_pattern([](float value) {
    const float held = rejoined(value, exact::bits(value) >> 7);
    ASSERT_EQ(split8_f32(value, exact::bits(value) >> 7).high, split_f32(held).high)
        << std::hexfloat << value;
  });
}

TEST(Rounding, Split8RestoresEveryPairThatItStores) {
  for (uint32_t pair = 0; pair < (1u << 24); pair += 3) {
    const float value = exact::from_bits(pair << 8);
    ASSERT_TRUE(same_bits(value, rejoined(value, pair)));
  }
}

TEST(Rounding, Split8RoundsUpAsOftenAsTheDiscardedBitsSay) {
  for (const uint32_t low : {0u, 1u, 0x40u, 0x80u, 0xFFu}) {
    // The second one carries into the upper half.
    for (const uint32_t base : {0x3F801200u, 0x3F807F00u, 0xBF80FF00u}) {
      uint32_t ups = 0;
      for (uint32_t random = 0; random < 256; ++random) {
        ups += exact::bits(rejoined(exact::from_bits(base | low), random)) == base + 256 ? 1 : 0;
      }
      EXPECT_EQ(ups, low);
    }
  }
}

TEST(Rounding, F16DecodesToSignTimesMantissaTimesPower) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const int exponent = static_cast<int>(code >> 10 & 31);
    const int mantissa = static_cast<int>(code & 1023);
    if (exponent == 31) continue;
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    const auto expected = static_cast<float>(code >> 15 != 0 ? -magnitude : magnitude);
    ASSERT_TRUE(same_bits(expected, f32_from_f16(static_cast<uint16_t>(code)))) << code;
  }
}

TEST(Rounding, F16NearestAroundEveryMidpoint) {
  for (uint16_t code = 0; code < 0x7C00; ++code) {
    const float value = f32_from_f16(code);
    const float next = code == 0x7BFF ? 65536.0f : f32_from_f16(static_cast<uint16_t>(code + 1));
    const float middle = value + (next - value) / 2;  // exact
    const auto even = static_cast<uint16_t>(code + code % 2);
    const auto above = static_cast<uint16_t>(code + 1);
    ASSERT_EQ(f16_nearest(value), code);
    ASSERT_EQ(f16_nearest(middle), even);
    ASSERT_EQ(f16_nearest(std::nextafter(middle, 0.0f)), code);
    ASSERT_EQ(f16_nearest(std::nextafter(middle, kInfinity)), above);
    ASSERT_EQ(f16_nearest(-middle), even | 0x8000);
  }
}

}  // namespace
}  // namespace outboard::quant
