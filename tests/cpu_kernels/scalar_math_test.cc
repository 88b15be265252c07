// The powers, logarithms and exponentials of which scalars are made, against long double.
#include "outboard/scalar_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "outboard/rule.h"
#include "outboard/rules/ademamix.h"
#include "support/rule_cases.h"

namespace outboard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Units in the last place of `exact` between it and `value`.
double distance(double value, long double exact) {
  const auto near = static_cast<double>(exact);
  const double unit = std::nextafter(std::abs(near), kInfinity) - std::abs(near);
  return static_cast<double>(std::abs(static_cast<long double>(value) - exact)) / unit;
}

TEST(ScalarMath, PowersAreRoundedOnce) {
  for (const double base : {0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.999999, 1 - 0x1p-30, 1.0}) {
    for (const int64_t exponent :
         {1LL, 2LL, 3LL, 7LL, 64LL, 999LL, 1000LL, 99'999LL, 1'000'003LL, 4'294'967'295LL}) {
      const long double exact = std::pow(static_cast<long double>(base), exponent);
      // The C library's own error, in 64 bits, beside the half unit of rounding.
      const double most = 0.5 + 0x1p-6;
      if (exact > 0x1p-900L) {
        EXPECT_LE(distance(exact::power(base, exponent), exact), most) << base << ' ' << exponent;
      } else {
        EXPECT_LE(exact::power(base, exponent), 0x1p-899) << base << ' ' << exponent;
      }
    }
  }
}

TEST(ScalarMath, PowersAtTheirLimits) {
  EXPECT_EQ(exact::power(0.0, 1), 0.0);
  EXPECT_EQ(exact::power(0.0, 1000), 0.0);
  EXPECT_EQ(exact::power(0.3, 0), 1.0);
  EXPECT_EQ(exact::power(0.3, 1), 0.3);
  EXPECT_EQ(exact::power(0.9, 1'000'000'000), 0.0);
}

TEST(ScalarMath, LogarithmsAndExponentialsAreClose) {
  std::vector<double> values = {0x1p-1074, 0x1p-1022, 1e-300, 1e-9, 0.5,
                                0.7071,    0.7072,    1e9,    1e300};
  for (int i = 1; i < 2000; ++i) values.push_back(i / 2000.0);
  for (int i = 1; i < 40; ++i) values.push_back(1 - std::ldexp(1.0, -i));
  for (const double value : values) {
    EXPECT_LE(distance(exact::log(value), std::log(static_cast<long double>(value))), 2) << value;
  }
  for (double value = -700; value <= 700; value += 0.37) {
    EXPECT_LE(distance(exact::exp(value), std::exp(static_cast<long double>(value))), 2) << value;
  }
  EXPECT_EQ(exact::log(1.0), 0.0);
  EXPECT_EQ(exact::log(0.0), -kInfinity);
  EXPECT_EQ(exact::exp(0.0), 1.0);
  EXPECT_NEAR(exact::exp(-720.0) / 0x1p-1060, std::exp(-720.0) / 0x1p-1060, 1e-6);
  EXPECT_EQ(exact::exp(-1e9), 0.0);
  EXPECT_EQ(exact::exp(-kInfinity), 0.0);
}

TEST(ScalarMath, TheSlowAverageWarmsUpFromAnyCoefficient) {
  using rules::AdEMAMix;
  std::vector<double> hyper = testing::default_hyper(rule_named("AdEMAMix"));
  hyper[AdEMAMix::kBeta3Steps] = 1000;
  const auto expected = [&](double t) {
    const double tau = t / 1000;
    return std::exp(1 / ((1 - tau) / std::log(0.9) + tau / std::log(0.9999)));
  };
  for (const double t : {1.0, 500.0, 999.0}) {
    EXPECT_NEAR(AdEMAMix::beta3_at(hyper, t), expected(t), 1e-14);
  }
  EXPECT_EQ(AdEMAMix::beta3_at(hyper, 1000), 0.9999);
  hyper[AdEMAMix::kBeta1] = 0;
  EXPECT_GT(AdEMAMix::beta3_at(hyper, 1), 0);
  hyper[AdEMAMix::kBeta3] = 0;
  EXPECT_EQ(AdEMAMix::beta3_at(hyper, 1), 0);
}

}  // namespace
}  // namespace outboard
