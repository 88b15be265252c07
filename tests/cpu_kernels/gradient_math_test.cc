// Sums of squares in their fixed order, widening and accumulation, in both compiled forms.
#include "cpu_kernels/gradient_math.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "support/guarded_buffer.h"
#include "support/numbers.h"
#include "support/safetensors.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::GuardedBuffer;
using ::outboard::testing::Numbers;
using ::outboard::testing::Safetensors;
using ::outboard::testing::same_bits;

constexpr GradientLoops kLoops[] = {GradientLoops::kBest, GradientLoops::kPortable};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The definition, element by element.
float defined_sum(const std::vector<float>& segment) {
  std::array<float, 64> lanes = {};
  for (size_t i = 0; i < kNormSegmentElements; ++i) {
    const float x = i < segment.size() ? segment[i] : 0.0f;
    lanes[i % 64] = std::fma(x, x, lanes[i % 64]);
  }
  for (const size_t k : {32, 16, 8, 4, 2, 1}) {
    for (size_t i = 0; i < k; ++i) lanes[i] = lanes[i] + lanes[i + k];
  }
  return lanes[0];
}

std::vector<float> defined_sums(const std::vector<float>& values) {
  std::vector<float> sums;
  for (size_t i = 0; i < values.size(); i += kNormSegmentElements) {
    const size_t last = std::min(values.size(), i + kNormSegmentElements);
    sums.push_back(defined_sum({values.begin() + static_cast<ptrdiff_t>(i),
                                values.begin() + static_cast<ptrdiff_t>(last)}));
  }
  return sums;
}

/// A gradient as stored, misaligned and guarded, and what its elements are as fp32.
struct Gradient {
  GuardedBuffer stored;
  std::vector<float> values;

  Gradient(DType type, const std::vector<float>& wanted, size_t shift)
      : stored(wanted.size() * bytes_of(type), shift * bytes_of(type)), values(wanted) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == DType::kF32) stored.as<float>()[i] = values[i];
      if (type == DType::kF32) continue;
      const uint16_t code =
          type == DType::kBF16 ? quant::bf16_nearest(values[i]) : quant::f16_nearest(values[i]);
      stored.as<uint16_t>()[i] = code;
      values[i] = type == DType::kBF16 ? quant::f32_from_bf16(code) : quant::f32_from_f16(code);
    }
  }
};

TEST(GradientMath, SumOfSquaresFollowsItsDefinition) {
  Numbers numbers(1);
  for (const size_t elements : {1, 63, 64, 65, 127, 4095, 4096, 4097, 10000, 12288}) {
    for (const DType type : kTypes) {
      Gradient gradient(type, numbers.many(elements, &Numbers::spread), elements % 3);
      for (const GradientLoops loops : kLoops) {
        std::vector<float> sums(norm_segments(elements));
        sum_of_squares(gradient.stored.as<void>(), type, elements, sums.data(), loops);
        EXPECT_TRUE(same_bits(defined_sums(gradient.values), sums))
            << elements << " " << name_of(type);
      }
    }
  }
}

TEST(GradientMath, SumOfSquaresEqualsTheGoldenValue) {
  const Safetensors golden = Safetensors::golden("integer_recipes");
  const auto x = golden.values<float>("sumsq_x");
  for (const GradientLoops loops : kLoops) {
    std::vector<float> sums(norm_segments(x.size()));
    sum_of_squares(x.data(), DType::kF32, x.size(), sums.data(), loops);
    double total = 0;
    for (const float sum : sums) total += sum;
    EXPECT_EQ(total, golden.values<double>("sumsq").at(0));
  }
}

TEST(GradientMath, NonFiniteValuesAndOverflowShowInTheirSegmentOnly) {
  for (const GradientLoops loops : kLoops) {
    std::vector<float> x(3 * kNormSegmentElements, 1.0f);
    x[5] = std::numeric_limits<float>::quiet_NaN();
    x[kNormSegmentElements + 70] = -kInfinity;
    x[2 * kNormSegmentElements] = 1e30f;
    std::vector<float> sums(3);
    sum_of_squares(x.data(), DType::kF32, x.size(), sums.data(), loops);
    EXPECT_TRUE(std::isnan(sums[0]));
    EXPECT_EQ(sums[1], kInfinity);
    EXPECT_EQ(sums[2], kInfinity);
  }
}

TEST(GradientMath, WidensEveryHalfwordExactly) {
  std::vector<uint16_t> codes(65536);
  std::vector<float> bf16(65536);
  std::vector<float> f16(65536);
  for (uint32_t i = 0; i < 65536; ++i) {
    codes[i] = static_cast<uint16_t>(i);
    bf16[i] = quant::f32_from_bf16(codes[i]);
    f16[i] = quant::f32_from_f16(codes[i]);
  }
  std::vector<float> wide(65536);
  widen(codes.data(), DType::kBF16, codes.size(), wide.data());
  EXPECT_TRUE(same_bits(bf16, wide));
  widen(codes.data(), DType::kF16, codes.size(), wide.data());
  EXPECT_TRUE(same_bits(f16, wide));
}

TEST(GradientMath, AccumulatesWithOneAdditionPerElement) {
  Numbers numbers(2);
  for (const size_t elements : {1, 7, 8, 9, 255, 256, 257, 1000}) {
    for (const DType type : kTypes) {
      Gradient gradient(type, numbers.many(elements, &Numbers::wild), 1);
      const std::vector<float> before = numbers.many(elements, &Numbers::spread);
      std::vector<float> expected(elements);
      for (size_t i = 0; i < elements; ++i) expected[i] = before[i] + gradient.values[i];
      for (const GradientLoops loops : kLoops) {
        GuardedBuffer sum(before, 1);
        accumulate(gradient.stored.as<void>(), type, elements, sum.as<float>(), loops);
        EXPECT_TRUE(same_bits(expected, sum.values<float>())) << elements << " " << name_of(type);
        EXPECT_TRUE(sum.is_intact());
      }
    }
  }
}

}  // namespace
}  // namespace outboard::cpu
