// Test data: a small generator that gives the same numbers everywhere, awkward floats, and
// comparison of bits in which all NaN are equal, because their payload is the CPU's choice.
#ifndef OUTBOARD_TESTS_SUPPORT_NUMBERS_H_
#define OUTBOARD_TESTS_SUPPORT_NUMBERS_H_

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "quant/random.h"
#include "quant/rounding.h"

namespace outboard::testing {

/// A reproducible stream of numbers.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed) {}

  uint32_t bits() { return static_cast<uint32_t>(splitmix64(state_++) >> 32); }
  /// Uniform in [0, 1).
  float uniform() { return static_cast<float>(bits() >> 8) * 0x1p-24f; }
  /// Magnitudes spread over the octaves 2^-8 ... 2^2, either sign.
  float spread() {
    const float magnitude = std::exp2(10.0f * uniform() - 8.0f);
    return (bits() & 1) != 0 ? -magnitude : magnitude;
  }
  /// Mostly spread(), sometimes zero, subnormal, tiny or huge, always finite.
  float wild() {
    switch (bits() % 16) {
      case 0:
        return (bits() & 1) != 0 ? -0.0f : 0.0f;
      case 1:
        return std::bit_cast<float>(bits() & 0x807FFFFFu);  // subnormal
      case 2:
        return std::bit_cast<float>((bits() & 0x83FFFFFFu) | 0x00800000u);  // near 2^-120
      case 3:
        return spread() * 1e15f;
      default:
        return spread();
    }
  }

  template <class Member>
  std::vector<float> many(size_t count, Member member) {
    std::vector<float> values(count);
    for (float& value : values) value = (this->*member)();
    return values;
  }

 private:
  uint64_t state_;
};

/// Same bits, or both NaN.
inline ::testing::AssertionResult same_bits(float expected, float actual) {
  const bool are_nan = std::isnan(expected) && std::isnan(actual);
  if (are_nan || std::bit_cast<uint32_t>(expected) == std::bit_cast<uint32_t>(actual)) {
    return ::testing::AssertionSuccess();
  }
  char text[128];
  std::snprintf(text, sizeof(text), "expected %a (%08x), got %a (%08x)", expected,
                std::bit_cast<uint32_t>(expected), actual, std::bit_cast<uint32_t>(actual));
  return ::testing::AssertionFailure() << text;
}

inline ::testing::AssertionResult same_bits(uint16_t expected, uint16_t actual) {
  if (expected == actual) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "expected code " << expected << ", got " << actual;
}

/// The first difference of two arrays, with its index.
template <class T>
::testing::AssertionResult same_bits(const std::vector<T>& expected, const std::vector<T>& actual) {
  if (expected.size() != actual.size()) {
    return ::testing::AssertionFailure() << expected.size() << " against " << actual.size();
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto result = same_bits(expected[i], actual[i]);
    if (!result) return ::testing::AssertionFailure() << "[" << i << "] " << result.message();
  }
  return ::testing::AssertionSuccess();
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_NUMBERS_H_
