// The functions of which a rule's scalars are made beside + - * /: powers, logarithms and
// exponentials in fp64 that return the same bits on host and device, where the C library and CUDA
// would differ. For a handful of values a step; nothing here is meant for elements.
#ifndef OUTBOARD_SCALAR_MATH_H_
#define OUTBOARD_SCALAR_MATH_H_

#include <bit>
#include <cstdint>
#include <limits>

#include "outboard/hd.h"

namespace outboard::exact {

#if defined(__CUDA_ARCH__)
OUTBOARD_HD uint64_t bits(double a) { return static_cast<uint64_t>(__double_as_longlong(a)); }
OUTBOARD_HD double from_bits(uint64_t a) { return __longlong_as_double(static_cast<int64_t>(a)); }
#else
OUTBOARD_HD uint64_t bits(double a) { return std::bit_cast<uint64_t>(a); }
OUTBOARD_HD double from_bits(uint64_t a) { return std::bit_cast<double>(a); }
#endif

/// The natural logarithm of 2, and its first 32 bits with what they leave: a product of the former
/// with an exponent is exact.
inline constexpr double kLn2 = 0x1.62e42fefa39efp-1;
inline constexpr double kLn2High = 0x1.62e42feep-1;
inline constexpr double kLn2Low = 0x1.a39ef35793c76p-33;

/// An unevaluated sum with about twice the digits of a double: |low| is at most half a unit in the
/// last place of high.
struct Wide {
  double high;
  double low;
};

OUTBOARD_HD Wide mul(Wide a, Wide b) {
  const double product = mul(a.high, b.high);
  const double error = fma(a.high, b.high, -product);
  const double rest = add(error, fma(a.high, b.low, mul(a.low, b.high)));
  const double sum = add(product, rest);
  return {sum, sub(rest, sub(sum, product))};
}

/// `base` to the power of `exponent`, for a base in [0, 1] and an exponent of at least 0, by
/// repeated squaring. For exponents below 2^32 and powers above 2^-900 it is the correctly rounded
/// power, unless that lies within 2^-16 units in the last place of the middle of two doubles.
OUTBOARD_HD double power(double base, int64_t exponent) {
  Wide result{1.0, 0.0};
  Wide square{base, 0.0};
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = mul(result, square);
    square = mul(square, square);
  }
  return result.high;
}

/// The natural logarithm of `value`, within 2 units in the last place; -Inf of 0. For values of at
/// least 0.
OUTBOARD_HD double log(double value) {
  if (value == 0) return -std::numeric_limits<double>::infinity();
  // value = 2^exponent * fraction, with a fraction between the root of 1/2 and that of 2.
  const bool is_subnormal = value < 0x1p-1022;
  const uint64_t word = bits(is_subnormal ? mul(value, 0x1p54) : value);
  double exponent = static_cast<double>(word >> 52) - (is_subnormal ? 1077 : 1023);
  double fraction = from_bits((word & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u);
  if (fraction > 0x1.6a09e667f3bcdp0) {
    fraction = mul(fraction, 0.5);
    exponent = add(exponent, 1.0);
  }
  // ln(fraction) = 2 artanh(s) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...), and s^2 < 0.03.
  const double above = sub(fraction, 1.0);
  const double s = div(above, add(2.0, above));
  const double square = mul(s, s);
  double series = 0;
  for (int k = 23; k >= 3; k -= 2) {
    series = mul(square, add(series, div(1.0, static_cast<double>(k))));
  }
  const double twice = mul(2.0, s);
  const double small = add(twice, fma(twice, series, mul(exponent, kLn2Low)));
  return add(mul(exponent, kLn2High), small);
}

/// e to the power of `value`, within 2 units in the last place where that is no subnormal; 0 where
/// it is less than the smallest of them. For values of at most 700.
OUTBOARD_HD double exp(double value) {
  if (value < -746.0) return 0.0;
  // value = exponent * ln 2 + rest, |rest| <= 0.35.
  const auto exponent = static_cast<int64_t>(add(div(value, kLn2), value < 0 ? -0.5 : 0.5));
  const auto number = static_cast<double>(exponent);
  const double rest = fma(-number, kLn2Low, fma(-number, kLn2High, value));
  double series = 1;
  for (int k = 14; k >= 1; --k) {
    series = fma(mul(rest, div(1.0, static_cast<double>(k))), series, 1.0);
  }
  // In two factors, because 2^exponent alone may be subnormal.
  const int64_t half = exponent / 2;
  const double first = from_bits(static_cast<uint64_t>(half + 1023) << 52);
  const double second = from_bits(static_cast<uint64_t>(exponent - half + 1023) << 52);
  return mul(mul(series, first), second);
}

}  // namespace outboard::exact

#endif  // OUTBOARD_SCALAR_MATH_H_
