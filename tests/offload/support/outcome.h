// What a trial leaves behind, from whichever trainer, and its comparison bit by bit.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_OUTCOME_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_OUTCOME_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tests/offload/support/trial.h"

namespace outboard::testing {

using Bytes = std::vector<unsigned char>;

inline Bytes bytes_at(const void* memory, size_t bytes) {
  Bytes copy(memory == nullptr ? 0 : bytes);
  if (!copy.empty()) std::memcpy(copy.data(), memory, copy.size());
  return copy;
}

struct ParameterOutcome {
  Bytes weight;
  Bytes master;
  std::array<Bytes, kMaxStates> states;  ///< empty: the state does not exist
  int64_t step = 0;
};

struct Outcome {
  std::vector<ParameterOutcome> parameters;
  std::vector<double> norms;  ///< per step; 0 where nothing asked for it
  std::vector<double> clip_factors;
  int64_t skipped_steps = 0;
};

/// Codes of one state of the parameter's own elements, without padding, and its scales.
inline Bytes state_bytes(const ParameterSpec& spec, size_t k, const StateArray& state) {
  const StateFormat& format = spec.formats[k];
  const size_t elements = state_elements(spec, k);
  Bytes bytes = bytes_at(state.codes, elements * format_info(format.format).code_bits / 8);
  const Bytes scales = bytes_at(state.scales, format.scale_count(elements) * sizeof(float));
  bytes.insert(bytes.end(), scales.begin(), scales.end());
  return bytes;
}

inline ::testing::AssertionResult same_bytes(const std::string& what, const Bytes& expected,
                                             const Bytes& actual) {
  if (expected.size() != actual.size()) {
    return ::testing::AssertionFailure()
           << what << ": expected " << expected.size() << " bytes, got " << actual.size();
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == actual[i]) continue;
    return ::testing::AssertionFailure()
           << what << " differs first in byte " << i << " of " << expected.size() << ": expected "
           << int{expected[i]} << ", got " << int{actual[i]};
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult same_parameter(const std::string& name,
                                                 const ParameterOutcome& expected,
                                                 const ParameterOutcome& actual) {
  // Whether a parameter without elements counts steps is the torch layer's business.
  if (expected.step != actual.step && !expected.weight.empty()) {
    return ::testing::AssertionFailure()
           << name << ": expected step " << expected.step << ", got " << actual.step;
  }
  auto result = same_bytes(name + " weight", expected.weight, actual.weight);
  if (result) result = same_bytes(name + " master", expected.master, actual.master);
  for (size_t k = 0; k < kMaxStates && result; ++k) {
    result = same_bytes(name + " state " + std::to_string(k), expected.states[k], actual.states[k]);
  }
  return result;
}

/// Equal, or both NaN, one by one.
inline bool same_numbers(const std::vector<double>& expected, const std::vector<double>& actual) {
  return std::equal(expected.begin(), expected.end(), actual.begin(), actual.end(),
                    [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); });
}

inline ::testing::AssertionResult same_outcome(const Outcome& expected, const Outcome& actual) {
  if (!same_numbers(expected.norms, actual.norms)) {
    return ::testing::AssertionFailure()
           << "norms: expected " << ::testing::PrintToString(expected.norms) << ", got "
           << ::testing::PrintToString(actual.norms);
  }
  if (!same_numbers(expected.clip_factors, actual.clip_factors)) {
    return ::testing::AssertionFailure()
           << "clip factors: expected " << ::testing::PrintToString(expected.clip_factors)
           << ", got " << ::testing::PrintToString(actual.clip_factors);
  }
  if (expected.skipped_steps != actual.skipped_steps) {
    return ::testing::AssertionFailure()
           << "skipped " << actual.skipped_steps << " steps, not " << expected.skipped_steps;
  }
  for (size_t i = 0; i < expected.parameters.size(); ++i) {
    const auto result = same_parameter("parameter " + std::to_string(i), expected.parameters[i],
                                       actual.parameters[i]);
    if (!result) return result;
  }
  return ::testing::AssertionSuccess();
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_OUTCOME_H_
