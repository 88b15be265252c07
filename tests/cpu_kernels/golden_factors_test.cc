// One step from each golden state of lpmm's AdamW with its factored second moment, on every target.
// lpmm forms beta * R + (1 - beta) * mean, and (R / mean R) * C in fp32, with means in another
// order; so everything has bounds.
#include <gtest/gtest.h>

#include <cmath>

#include "cpu_kernels/factors.h"
#include "support/rule_cases.h"
#include "support/safetensors.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::Json;
using ::outboard::testing::JsonReader;
using ::outboard::testing::Safetensors;

constexpr int kSteps = 5;

float ulp_of(float value) { return std::nextafter(std::abs(value), INFINITY) - std::abs(value); }

/// One tensor that lpmm has trained. It factors the last two dimensions: a tensor of more is many
/// matrices.
class GoldenFactors {
 public:
  explicit GoldenFactors(const std::string& name)
      : file_(Safetensors::golden("adamw_factored")), name_(name), hyper_(default_hyper(rule())) {
    const Json description = JsonReader(file_.metadata().at(name).text).read();
    rows_ = static_cast<size_t>(description.at("rows").number);
    columns_ = static_cast<size_t>(description.at("columns").number);
    const Json arguments = JsonReader(description.at("args").text).read();
    for (size_t i = 0; i < hyper_.size(); ++i) {
      const std::string key(rule().hyper_parameters[i].key);
      const size_t dot = key.find('.');
      if (!arguments.has(key.substr(0, dot))) continue;
      const Json& value = arguments.at(key.substr(0, dot));
      hyper_[i] =
          dot == std::string::npos ? value.number : value.items.at(key[dot + 1] - '0').number;
    }
  }

  void expect_steps() const {
    for (int step = 1; step <= kSteps; ++step) {
      SCOPED_TRACE(name_ + " step " + std::to_string(step));
      const size_t matrices = load("p", 0).size() / (rows_ * columns_);
      for (size_t i = 0; i < matrices; ++i) expect_step(step, i);
    }
  }

 private:
  static const RuleInfo& rule() { return rule_info(RuleId::kAdamWFactored); }

  [[nodiscard]] std::vector<float> load(const std::string& array, int step) const {
    return file_.values<float>(name_ + "/" + array + std::to_string(step));
  }

  /// Matrix `index` of an array that has `count` values of each.
  [[nodiscard]] std::vector<float> load(const std::string& array, int step, size_t index,
                                        size_t count) const {
    const std::vector<float> all = load(array, step);
    const auto first = all.begin() + static_cast<ptrdiff_t>(index * count);
    return {first, first + static_cast<ptrdiff_t>(count)};
  }

  [[nodiscard]] std::vector<float> load_state(size_t k, int step, size_t index) const {
    const size_t count = state_elements(rule().states[k], rows_ * columns_, rows_);
    std::vector<float> values(count);
    if (step > 0) values = load(std::string(rule().states[k].key), step, index, count);
    values.resize(padded_elements(count));
    return values;
  }

  void expect_step(int step, size_t index) const {
    const size_t elements = rows_ * columns_;
    const std::vector<float> before = load("p", step - 1, index, elements);
    const std::vector<float> gradient = load("g", step, index, elements);
    std::vector<float> weight = before;
    std::vector<std::vector<float>> states;
    ParameterUpdate update = {};
    update.rule = rule().id;
    update.scalars = rule().scalars(hyper_, step, 1.0);
    update.elements = elements;
    update.rows = rows_;
    update.gradient = gradient.data();
    update.weight = weight.data();
    for (size_t k = 0; k < rule().states.size(); ++k) {
      states.push_back(load_state(k, step - 1, index));
    }
    for (size_t k = 0; k < states.size(); ++k) update.states[k].codes = states[k].data();
    update.scalars = factored_scalars(update);
    ResolvedUpdate(update).run(0, elements);
    expect_weights(weight, before, load("p", step, index, elements));
    expect_first_moments(states[0], load_state(0, step - 1, index), gradient,
                         load_state(0, step, index));
    for (const size_t k : {1, 2}) {
      const std::vector<float> expected = load_state(k, step, index);
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(states[k][i], expected[i], 3 * ulp_of(expected[i])) << k << " at " << i;
      }
    }
  }

  static void expect_weights(const std::vector<float>& actual, const std::vector<float>& before,
                             const std::vector<float>& expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
      const float ulp = ulp_of(std::max(std::abs(expected[i]), std::abs(before[i])));
      const float change = std::abs(expected[i] - before[i]);
      ASSERT_NEAR(actual[i], expected[i], ulp + 0x1p-21f * change) << i;
    }
  }

  static void expect_first_moments(const std::vector<float>& actual,
                                   const std::vector<float>& before,
                                   const std::vector<float>& gradient,
                                   const std::vector<float>& expected) {
    for (size_t i = 0; i < gradient.size(); ++i) {
      const float terms = std::abs(before[i]) + std::abs(gradient[i]);
      ASSERT_NEAR(actual[i], expected[i], 0x1p-23f * terms) << i;
    }
  }

  Safetensors file_;
  std::string name_;
  std::vector<double> hyper_;
  size_t rows_ = 0;
  size_t columns_ = 0;
};

TEST(GoldenFactors, MatricesAreReproducedOnEveryTarget) {
  for (const char* name : {"matrix", "wide", "row", "convolution"}) {
    const GoldenFactors golden(name);
    for_each_target([&] { golden.expect_steps(); });
  }
}

// What lpmm makes of a convolution as it is: one matrix of height and width for each pair of
// channels, where a parameter here is one matrix of a row for each output channel.
TEST(GoldenFactors, SlicesOfAConvolutionAreReproducedOnEveryTarget) {
  const GoldenFactors golden("slices");
  for_each_target([&] { golden.expect_steps(); });
}

}  // namespace
}  // namespace outboard::cpu
