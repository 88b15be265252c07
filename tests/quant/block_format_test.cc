// What the formats with blocks promise, apart from equal bits on every target: nearest is nearest,
// codes survive, small second moments never vanish, random rounding has the right mean.
#include "quant/block_format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "quant/codec.h"
#include "quant/companding.h"
#include "quant/float8.h"
#include "support/catalogue.h"
#include "support/numbers.h"
#include "support/reference_codec.h"
#include "support/targets.h"

namespace outboard {
namespace {

using quant::BlockEncoder;
using testing::CodecArray;
using testing::for_each_target;
using testing::Numbers;
using testing::reference_encode;

/// Formats of second moments that store the root, and whose scale is the largest root.
template <class T>
constexpr bool kScaleIsRoot =
    std::is_same_v<T, quant::Root8> || std::is_same_v<T, quant::Root8Stochastic> ||
    std::is_same_v<T, quant::E4M3Root>;

template <class Definition>
class BlockFormatTest : public ::testing::Test {};
using OwnFormats =
    ::testing::Types<quant::Sym8, quant::Root8, quant::Root8Stochastic, quant::NF4, quant::Root4,
                     quant::Root4Nearest, quant::E4M3, quant::E4M3Root>;
TYPED_TEST_SUITE(BlockFormatTest, OwnFormats, testing::CatalogueNames);

/// Every code that the encoder makes.
template <class Definition>
std::vector<uint8_t> all_codes() {
  std::vector<uint8_t> codes;
  for (int code = 0; code < 1 << Definition::kCodeBits; ++code) {
    if constexpr (requires { Definition::is_code(uint8_t{}); }) {
      if (!Definition::is_code(static_cast<uint8_t>(code))) continue;
    }
    codes.push_back(static_cast<uint8_t>(code));
  }
  return codes;
}

/// What decides which level is nearest: the root for second moments, else the value.
template <class Definition>
double measure(float value) {
  return Definition::kIsSigned ? double{value} : std::sqrt(double{value});
}

/// The levels of a block with `scale`, rising.
template <class Definition>
std::vector<float> levels(float scale) {
  const typename Definition::Decoder decoder(scale);
  std::set<float> values;
  for (const uint8_t code : all_codes<Definition>()) values.insert(decoder(code));
  return {values.begin(), values.end()};
}

/// Every level and every midpoint of two levels of a block whose largest magnitude is `largest`,
/// and the floats next to those.
template <class Definition>
std::vector<float> near_levels(float largest) {
  std::vector<float> values;
  const std::vector<float> all = levels<Definition>(Definition::scale(largest));
  for (size_t i = 0; i + 1 < all.size(); ++i) {
    const double between = (measure<Definition>(all[i]) + measure<Definition>(all[i + 1])) / 2;
    const auto middle = static_cast<float>(Definition::kIsSigned ? between : between * between);
    for (const float value : {middle, all[i]}) {
      values.insert(values.end(),
                    {value, std::nextafter(value, -INFINITY), std::nextafter(value, INFINITY)});
    }
  }
  std::erase_if(values, [&](float value) {
    return std::fabs(value) > largest || (!Definition::kIsSigned && value < 0);
  });
  return values;
}

/// Those, and values from everywhere in the block.
template <class Definition>
std::vector<float> sweep(float largest) {
  std::vector<float> values = near_levels<Definition>(largest);
  for (int i = 0; i <= 20000; ++i) {
    const float at = static_cast<float>(i) / 20000.0f;
    values.push_back((Definition::kIsSigned ? 2 * at - 1 : at * at) * largest);
  }
  return values;
}

TYPED_TEST(BlockFormatTest, NearestIsTheNearestLevelOfAll) {
  if constexpr (!TypeParam::kIsStochastic) {
    for (const float largest : {1.0f, 3.1e-7f, 1.7e5f, 0x1.8p-80f}) {
      const float scale = TypeParam::scale(largest);
      const BlockEncoder<TypeParam> encoder(scale);
      const typename TypeParam::Decoder decoder(scale);
      const std::vector<float> all = levels<TypeParam>(scale);
      for (const float value : sweep<TypeParam>(largest)) {
        // Where v > 0 must not become 0, the first level is the nearest that is left.
        if (!TypeParam::kIsSigned && all[0] == 0 && value > 0 && value < all[1]) continue;
        const double at = measure<TypeParam>(value);
        double best = INFINITY;
        for (const float level : all) {
          best = std::min(best, std::fabs(measure<TypeParam>(level) - at));
        }
        const float read = decoder(encoder(value, 0));
        ASSERT_LE(std::fabs(measure<TypeParam>(read) - at), best + 1e-6 * std::fabs(at))
            << value << " in a block of " << largest << " reads as " << read;
      }
    }
  }
}

TYPED_TEST(BlockFormatTest, EveryCodeSurvivesDecodeThenEncode) {
  if constexpr (!TypeParam::kIsStochastic) {
    for (int exponent = -47; exponent <= 17; ++exponent) {
      const float scale = std::ldexp(1.37f, exponent);
      const typename TypeParam::Decoder decoder(scale);
      float largest = 0;
      for (const uint8_t code : all_codes<TypeParam>()) {
        largest = std::max(largest, std::fabs(decoder(code)));
      }
      const BlockEncoder<TypeParam> encoder(TypeParam::scale(largest));
      for (const uint8_t code : all_codes<TypeParam>()) {
        ASSERT_EQ(encoder(decoder(code), 0), code) << "scale " << scale;
      }
    }
  }
}

TYPED_TEST(BlockFormatTest, SignsStayAndNothingExceedsTheLargest) {
  Numbers numbers(5);
  for (const float largest : {1.0f, 2.2e-6f, 9e4f}) {
    const float scale = TypeParam::scale(largest);
    const BlockEncoder<TypeParam> encoder(scale);
    const typename TypeParam::Decoder decoder(scale);
    for (const float value : sweep<TypeParam>(largest)) {
      const float read = decoder(encoder(value, numbers.bits() & 0xFFFF));
      ASSERT_FALSE(value > 0 ? read < 0 : value < 0 ? read > 0 : false) << value;
      ASSERT_LE(std::fabs(read), largest * (1 + 0x1p-20f)) << value;
      const bool has_zero = TypeParam::kName.substr(0, 5) != "root4";
      ASSERT_TRUE(value != 0 || read == 0 || !has_zero);
    }
  }
}

TYPED_TEST(BlockFormatTest, SecondMomentsNeverBecomeZero) {
  if constexpr (!TypeParam::kIsSigned) {
    for (const float value : {1e-30f, 1e-20f, 1e-12f, 3e-6f, 0.1f, 1.0f}) {
      for (const uint32_t draw : {0u, 1u, 0x8000u, 0xFFFFu}) {
        const float scale = TypeParam::scale(1.0f);
        const typename TypeParam::Decoder decoder(scale);
        ASSERT_GT(decoder(BlockEncoder<TypeParam>(scale)(value, draw)), 0.0f) << value;
      }
    }
  }
}

/// On a threshold, and with the smallest random number, one comparison too many or too few shows.
TYPED_TEST(BlockFormatTest, EveryTargetAgreesWithTheDefinitionOnThresholds) {
  const StateFormat format = state_format(format_named(TypeParam::kName).format);
  RandomContext random = {.key = {5, 6}, .step = 1, .stream = 2};
  uint64_t offset = 0;  // such that element 1 draws 0
  while (random16(random.key, random.step, random.stream, offset + 1) != 0) ++offset;
  for (const float value : near_levels<TypeParam>(1.0f)) {
    std::vector<float> values(format.unit_elements(), value);
    for (size_t i = 0; i < values.size(); i += format.block_elements) values[i] = 1.0f;
    CodecArray expected(format, values.size());
    reference_encode<TypeParam>(values, values.size(), random, offset, expected.view());
    for_each_target([&] {
      CodecArray actual(format, values.size());
      codec(format.format)
          .encode(values.data(), 0, values.size(), values.size(), random, offset, actual.view());
      ASSERT_TRUE(expected == actual) << value;
    });
  }
}

/// Blocks of nothing, of subnormals and of what is too small for a scale read as zeros; those with
/// an infinity or a NaN read as NaN.
TYPED_TEST(BlockFormatTest, ScalesOfSpecialBlocks) {
  const auto read = [](float largest) {
    const float scale = TypeParam::scale(largest);
    return typename TypeParam::Decoder(scale)(BlockEncoder<TypeParam>(scale)(largest, 0));
  };
  EXPECT_EQ(exact::bits(read(0.0f)), 0u);
  if (!kScaleIsRoot<TypeParam>) {
    EXPECT_EQ(exact::bits(read(1e-45f)), 0u);
    EXPECT_EQ(exact::bits(read(0x1p-101f)), 0u);
  }
  EXPECT_TRUE(std::isnan(read(INFINITY)));
  EXPECT_TRUE(std::isnan(read(NAN)));
  EXPECT_GT(read(0x1p-90f), 0.0f);
}

/// The number of k >= 0 with a >= k^2 + k + 1/2, counted.
int counted_square(float a) {
  int k = 0;
  while (double{a} >= double(k) * k + k + 0.5) ++k;
  return k;
}

/// nearest_square with a root that is off by `error`.
float square_from_rough_root(float a, double error) {
  const auto root = static_cast<float>(std::sqrt(double{a}) * (1 + error));
  const float estimate = exact::rint(exact::fma(root, 0.999f, -0.5f));
  const float next = exact::add(exact::fma(estimate, estimate, estimate), 0.5f);
  return a >= next ? exact::add(estimate, 1.0f) : estimate;
}

TEST(Companding, NearestSquareDoesNotDependOnTheRootsError) {
  std::vector<float> values;
  for (int k = 0; k < 257; ++k) {
    for (int away = -40; away <= 40; ++away) {
      const float threshold = static_cast<float>(k * k + k) + 0.5f;
      values.push_back(exact::from_bits(exact::bits(threshold) + static_cast<uint32_t>(away)));
    }
  }
  Numbers numbers(6);
  for (int i = 0; i < 20000; ++i) values.push_back(66000.0f * numbers.uniform());
  for (int i = 0; i < 20000; ++i) values.push_back(std::exp2(40 * numbers.uniform() - 24));
  for (const float a : values) {
    const int expected = counted_square(a);
    ASSERT_EQ(quant::nearest_square(a), static_cast<float>(expected)) << a;
    for (const double error : {-3.8e-4, -1e-5, 0.0, 1e-5, 3.8e-4}) {
      ASSERT_EQ(square_from_rough_root(a, error), static_cast<float>(expected)) << a << error;
    }
  }
}

/// The mean of `statistic` of what `value` reads as, over all draws.
template <class Definition, class Statistic>
double mean_over_draws(float value, float scale, const Statistic& statistic) {
  const BlockEncoder<Definition> encoder(scale);
  const typename Definition::Decoder decoder(scale);
  double sum = 0;
  for (uint32_t draw = 0; draw < 65536; ++draw) sum += statistic(decoder(encoder(value, draw)));
  return sum / 65536;
}

TEST(StochasticFormat, Root4KeepsTheMeanOfTheInverseRoot) {
  const auto inverse_root = [](double value) { return 1 / std::sqrt(value); };
  for (const float value : {0.0052f, 0.02f, 0.3f, 0.77f, 0.9f, 1.0f, 1.29f, 1.3f}) {
    const double mean = mean_over_draws<quant::Root4>(value, 1.3f, inverse_root);
    EXPECT_NEAR(mean / inverse_root(double{value}), 1, 2e-5) << value;
  }
}

TEST(StochasticFormat, RootFormatsKeepTheMeanOfTheRoot) {
  const auto root = [](double value) { return std::sqrt(value); };
  for (const float value : {1e-8f, 3e-6f, 0.02f, 0.3f, 0.77f, 1.69f}) {
    const double expected = root(double{value});
    // A draw has 16 bits: the mean is exact to 2^-16 of a gap.
    EXPECT_NEAR(mean_over_draws<quant::Root8Stochastic>(value, 1.3f, root), expected, 4e-7)
        << value;
    EXPECT_NEAR(mean_over_draws<quant::E4M3Root>(value, 1.3f, root), expected, 3e-6 * expected)
        << value;
  }
}

TEST(Float8, NearestAroundEveryMidpoint) {
  for (int code = 0; code < 0x7E; ++code) {
    const float low = quant::f32_from_e4m3(static_cast<uint8_t>(code));
    const float high = quant::f32_from_e4m3(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(quant::e4m3_nearest(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(quant::e4m3_nearest(std::nextafter(middle, low)), code);
    EXPECT_EQ(quant::e4m3_nearest(std::nextafter(middle, high)), code + 1);
    EXPECT_EQ(quant::e4m3_nearest(-std::nextafter(middle, low)), code | 0x80);
  }
}

TEST(Float8, WhatIsTooLargeBecomesNaN) {
  EXPECT_EQ(quant::e4m3_nearest(464.0f), 0x7E);
  EXPECT_EQ(quant::e4m3_nearest(std::nextafter(464.0f, 500.0f)), 0x7F);
  EXPECT_EQ(quant::e4m3_nearest(-INFINITY), 0xFF);
  EXPECT_EQ(quant::e4m3_nearest(NAN) & 0x7F, 0x7F);
}

}  // namespace
}  // namespace outboard
