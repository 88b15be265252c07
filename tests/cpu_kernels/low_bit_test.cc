// AdamW with low-bit state: golden runs, the size of the error that the formats cause, and slow
// averages that must keep moving.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "cpu_kernels/step.h"
#include "support/numbers.h"
#include "support/reference_codec.h"
#include "support/rule_cases.h"
#include "support/safetensors.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::CodecArray;
using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::Numbers;
using ::outboard::testing::Safetensors;
using ::outboard::testing::same_bits;

/// One fp32 parameter under AdamW with state in the named formats.
class LowBitAdamW {
 public:
  LowBitAdamW(const char* formats, std::vector<float> weights, std::vector<double> hyper,
              RandomKey key)
      : weight(std::move(weights)),
        m(state_formats_named(formats).signed_state, weight.size()),
        v(state_formats_named(formats).unsigned_state, weight.size()),
        hyper_(std::move(hyper)) {
    update_.rule = rule_.id;
    update_.elements = weight.size();
    update_.weight = weight.data();
    update_.states = {m.view(), v.view()};
    update_.formats = {m.format, v.format};
    update_.random_key = key;
  }
  LowBitAdamW(const LowBitAdamW&) = delete;
  LowBitAdamW& operator=(const LowBitAdamW&) = delete;

  void step(const std::vector<float>& gradient) {
    ++update_.step;
    update_.scalars = rule_.scalars(hyper_, update_.step, 1.0);
    update_.gradient = gradient.data();
    ResolvedUpdate(update_).run(0, weight.size());
  }

  [[nodiscard]] std::vector<float> second_moment() {
    std::vector<float> values(round_up(weight.size(), v.format.unit_elements()));
    codec(v.format.format).decode(v.view(), 0, values.size(), values.data());
    values.resize(weight.size());
    return values;
  }

  std::vector<float> weight;
  CodecArray m;
  CodecArray v;

 private:
  const RuleInfo& rule_ = rule_named("AdamW");
  std::vector<double> hyper_;
  ParameterUpdate update_ = {};
};

std::vector<uint16_t> codes_of(const CodecArray& array, size_t elements) {
  std::vector<uint16_t> codes(elements);
  const bool is_packed = format_info(array.format.format).code_bits == 4;
  for (size_t i = 0; i < elements; ++i) {
    codes[i] = is_packed ? (array.codes[i / 2] >> (i % 2 * 4)) & 15 : array.codes[i];
  }
  return codes;
}

void expect_state(const Safetensors& file, const std::string& key, const std::string& step,
                  const CodecArray& array, size_t elements) {
  const std::vector<uint8_t> codes = file.values<uint8_t>(key + "_codes" + step);
  const std::vector<float> scales = file.values<float>(key + "_scale" + step);
  EXPECT_TRUE(
      same_bits(std::vector<uint16_t>(codes.begin(), codes.end()), codes_of(array, elements)));
  const auto end = array.scales.begin() + static_cast<ptrdiff_t>(scales.size());
  EXPECT_TRUE(same_bits(scales, std::vector<float>(array.scales.begin(), end)));
}

TEST(LowBit, GoldenRunsAreReproducedOnEveryTarget) {
  const Safetensors file = Safetensors::golden("own_formats");
  std::vector<double> hyper = default_hyper(rule_named("AdamW"));
  hyper[4] = 0.05;  // weight_decay
  for (const auto& [name, formats] :
       {std::pair{"adamw_sym8_root8", "8bit"}, std::pair{"adamw_nf4_root4", "4bit"}}) {
    for_each_target([&] {
      LowBitAdamW run(formats, file.values<float>("adamw/p0"), hyper, random_key(20261, 4));
      for (int step = 1; step <= 5; ++step) {
        const std::string now = std::to_string(step);
        SCOPED_TRACE(name + (" step " + now));
        run.step(file.values<float>("adamw/g" + now));
        if (step % 2 == 0) continue;
        expect_state(file, name + std::string("/m"), now, run.m, run.weight.size());
        expect_state(file, name + std::string("/v"), now, run.v, run.weight.size());
      }
      EXPECT_TRUE(same_bits(file.values<float>(name + std::string("/p5")), run.weight));
    });
  }
}

/// Gradients scale * (N + 0.1), where the logarithms of the elements' scales are normal.
class SyntheticGradients {
 public:
  SyntheticGradients(size_t elements, double spread) : numbers_(20) {
    for (size_t i = 0; i < elements; ++i) scales_.push_back(std::exp(spread * normal()));
  }
  std::vector<float> next() {
    std::vector<float> gradient;
    for (const double scale : scales_) {
      gradient.push_back(static_cast<float>(scale * (normal() + 0.1)));
    }
    return gradient;
  }

 private:
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - double{numbers_.uniform()}));
    return radius * std::cos(2 * std::numbers::pi * numbers_.uniform());
  }
  Numbers numbers_;
  std::vector<double> scales_;
};

struct UpdateError {
  double relative_rms;  ///< against fp64 moments, over the last 100 steps
  double largest;       ///< update of one element, in learning rates
};

/// 1,000 steps of 1,024 elements.
UpdateError update_error(const char* formats, double spread) {
  constexpr size_t kElements = 1024;
  SyntheticGradients gradients(kElements, spread);
  LowBitAdamW run(formats, std::vector<float>(kElements), {1, 0.9, 0.999, 1e-8, 0, 0, 0},
                  random_key(1, 2));
  std::vector<double> m(kElements);
  std::vector<double> v(kElements);
  double error = 0;
  double size = 0;
  UpdateError result = {};
  for (int step = 1; step <= 1000; ++step) {
    const std::vector<float> gradient = gradients.next();
    std::ranges::fill(run.weight, 0.0f);  // what it is after the step is the update, at rate 1
    run.step(gradient);
    for (size_t i = 0; i < kElements; ++i) {
      const double g = gradient[i];
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      if (step <= 900) continue;
      const double exact = -m[i] / (1 - std::pow(0.9, step)) /
                           (std::sqrt(v[i] / (1 - std::pow(0.999, step))) + 1e-8);
      error += (run.weight[i] - exact) * (run.weight[i] - exact);
      size += exact * exact;
      result.largest = std::max(result.largest, std::fabs(double{run.weight[i]}));
    }
  }
  result.relative_rms = std::sqrt(error / size);
  return result;
}

TEST(LowBit, TheErrorOfUpdatesStaysWithinItsLimits) {
  struct Limit {
    const char* formats;
    double at_spread[3];
  };
  for (const Limit& limit :
       {Limit{"8bit", {.06, .07, .12}}, Limit{"4bit", {.30, .50, .85}},
        Limit{"8bit/root8s", {.06, .09, .14}}, Limit{"fp8", {.20, .20, .21}}}) {
    for (int i = 0; i < 3; ++i) {
      const UpdateError error = update_error(limit.formats, 0.5 * i);
      EXPECT_LE(error.relative_rms, limit.at_spread[i]) << limit.formats << " " << 0.5 * i;
      EXPECT_LE(error.largest, 4) << limit.formats << " " << 0.5 * i;
    }
  }
}

/// The mean of sqrt(v) / (its exact value) after 3,000 steps with gradients of `first` and 3,000
/// with gradients of `later`; one element in 64 has gradients of `largest` all the time.
double followed(const char* formats, float first, float later, float largest) {
  constexpr size_t kElements = 1024;
  LowBitAdamW run(formats, std::vector<float>(kElements), default_hyper(rule_named("AdamW")),
                  random_key(3, 4));
  const auto gradients = [&](float value) {
    std::vector<float> gradient(kElements, value);
    for (size_t i = 0; i < kElements && largest > 0; i += 64) gradient[i] = largest;
    return gradient;
  };
  const std::vector<float> before = gradients(first);
  const std::vector<float> after = gradients(later);
  double exact = 0;
  for (int step = 1; step <= 6000; ++step) {
    run.step(step <= 3000 ? before : after);
    const double g = step <= 3000 ? first : later;
    exact = 0.999 * exact + 0.001 * g * g;
  }
  const std::vector<float> v = run.second_moment();
  double sum = 0;
  for (size_t i = 0; i < kElements; ++i) sum += i % 64 == 0 ? 0.0 : std::sqrt(v[i] / exact);
  return sum / (kElements - kElements / 64.0);
}

TEST(LowBit, SecondMomentsFollowWhenTheirBlocksChangeAsAWhole) {
  for (const char* formats : {"8bit", "4bit", "8bit/4bit", "fp8", "sym8/root8s"}) {
    EXPECT_NEAR(followed(formats, 1.0f, 2.0f, 0.0f), 1, 0.01) << formats;
    EXPECT_NEAR(followed(formats, 2.0f, 1.0f, 0.0f), 1, 0.01) << formats;
  }
}

/// Here scales do not move the small elements along: each step is far below the gap of two codes.
TEST(LowBit, StochasticSecondMomentsFollowWhereNearestStalls) {
  for (const auto& [formats, tolerance] :
       {std::pair{"4bit", 0.1}, std::pair{"fp8", 0.02}, std::pair{"sym8/root8s", 0.005}}) {
    EXPECT_NEAR(followed(formats, 1.0f, 2.0f, 4.0f), 1, tolerance) << formats;
    EXPECT_NEAR(followed(formats, 2.0f, 1.0f, 4.0f), 1, tolerance) << formats;
  }
  for (const char* formats : {"8bit", "nf4/root4_nearest"}) {
    EXPECT_NEAR(followed(formats, 1.0f, 2.0f, 4.0f), 0.5, 0.05) << formats;
  }
}

}  // namespace
}  // namespace outboard::cpu
