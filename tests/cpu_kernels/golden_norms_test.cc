// One step from each golden state of bitsandbytes' 32-bit LAMB and LARS on the CPU, which clip the
// update to max_unorm times the weight's norm, on every target. Its norms and root are fp32, and
// its LAMB decays after the step, so weights have bounds.
#include <gtest/gtest.h>

#include <cmath>

#include "cpu_kernels/measure.h"
#include "outboard/rules/lamb.h"
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

/// bitsandbytes' CPU kernel measures LAMB's update before bias correction, m / (sqrt(v) + eps), and
/// applies the corrected one: a limit that is larger by this factor.
double limit_correction(const std::vector<double>& hyper, int step) {
  using rules::LAMB;
  return std::sqrt(1 - std::pow(hyper[LAMB::kBeta2], step)) /
         (1 - std::pow(hyper[LAMB::kBeta1], step));
}

class GoldenNorms {
 public:
  explicit GoldenNorms(const std::string& name)
      : file_(Safetensors::golden("lamb_lars")),
        name_(name),
        description_(JsonReader(file_.metadata().at(name).text).read()),
        rule_(rule_named(description_.at("class").text)),
        hyper_(default_hyper(rule_)) {
    const Json arguments = JsonReader(description_.at("args").text).read();
    for (size_t i = 0; i < hyper_.size(); ++i) {
      const std::string key(rule_.hyper_parameters[i].key);
      if (arguments.has(key)) hyper_[i] = arguments.at(key).number;
    }
  }

  void expect_step(int step, float most_relative_error) const {
    SCOPED_TRACE(name_ + " step " + std::to_string(step));
    const std::vector<float> before = load("p", step - 1);
    const std::vector<float> gradient = load("g", step);
    std::vector<float> weight = before;
    std::vector<std::vector<float>> states;
    ParameterUpdate update = {};
    update.rule = rule_.id;
    update.scalars = rule_.scalars(hyper_at(step), step, 1.0);
    update.elements = weight.size();
    update.gradient = gradient.data();
    update.weight = weight.data();
    for (const StateInfo& state : rule_.states) {
      states.push_back(step == 1 ? std::vector<float>() : load(std::string(state.key), step - 1));
      states.back().resize(padded_elements(weight.size()));
    }
    for (size_t k = 0; k < states.size(); ++k) update.states[k].codes = states[k].data();
    ParameterNorms norms(update);
    norms.run(0, update.elements);
    EXPECT_FALSE(norms.scalars() == update.scalars) << "nothing was clipped";
    update.scalars = norms.scalars();
    ResolvedUpdate(update).run(0, update.elements);
    expect_close(weight, load("p", step), before, most_relative_error);
    for (size_t k = 0; k < states.size(); ++k) {
      const std::vector<float> expected = load(std::string(rule_.states[k].key), step);
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(states[k][i], expected[i], 0x1p-21f * std::abs(expected[i]) + 1e-7f) << i;
      }
    }
  }

 private:
  [[nodiscard]] std::vector<float> load(const std::string& array, int step) const {
    return file_.values<float>(name_ + "/" + array + std::to_string(step));
  }

  [[nodiscard]] std::vector<double> hyper_at(int step) const {
    std::vector<double> hyper = hyper_;
    if (rule_.name == "LAMB") hyper[rules::LAMB::kMaxUnorm] *= limit_correction(hyper, step);
    return hyper;
  }

  static void expect_close(const std::vector<float>& actual, const std::vector<float>& expected,
                           const std::vector<float>& before, float most_relative_error) {
    for (size_t i = 0; i < expected.size(); ++i) {
      const float largest = std::max(std::abs(expected[i]), std::abs(before[i]));
      const float ulp = std::nextafter(largest, INFINITY) - largest;
      const float change = std::abs(expected[i] - before[i]);
      ASSERT_NEAR(actual[i], expected[i], 2 * ulp + most_relative_error * change) << i;
    }
  }

  Safetensors file_;
  std::string name_;
  Json description_;
  const RuleInfo& rule_;
  std::vector<double> hyper_;
};

TEST(GoldenNorms, ClippedLambIsReproducedOnEveryTarget) {
  const GoldenNorms lamb("lamb");
  for_each_target([&] {
    // lr * weight_decay, by which the order of decay and step matters, and what norms in fp32 cost.
    for (int step = 1; step <= kSteps; ++step) lamb.expect_step(step, 1e-4f + 0x1p-20f);
  });
}

TEST(GoldenNorms, ClippedLarsIsReproducedOnEveryTarget) {
  const GoldenNorms lars("lars");
  for_each_target([&] {
    for (int step = 1; step <= kSteps; ++step) lars.expect_step(step, 0x1p-20f);
  });
}

}  // namespace
}  // namespace outboard::cpu
