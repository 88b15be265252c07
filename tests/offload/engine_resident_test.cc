// A step of resident parameters alone: what it enqueues, and that it waits for nothing.
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <vector>

#include "outboard/engine.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::WatchedDevice;

/// Counts device calls of one step of two resident parameters with 8-bit state.
class ResidentStep {
 public:
  ResidentStep(bool skip_nonfinite, double max_gradient_norm)
      : weights_(2, std::vector<float>(kElements)),
        gradients_(2, std::vector<float>(kElements, 0.5f)),
        engine_({.skip_nonfinite = skip_nonfinite},
                std::make_shared<WatchedDevice>(make_simulated_device({}),
                                                [this](Call call, const Event*) { count(call); })) {
    const StateFormats formats = state_formats_named("8bit");
    std::vector<double> hyper;
    for (const HyperParameter& parameter : rule_named("AdamW").hyper_parameters) {
      hyper.push_back(parameter.default_value);
    }
    std::vector<ParameterSpec> specs;
    for (auto& weight : weights_) {
      specs.push_back({.name = "weight",
                       .weight = weight.data(),
                       .elements = kElements,
                       .placement = Placement::kResident,
                       .rule = rule_named("AdamW").id,
                       .formats = {formats.signed_state, formats.unsigned_state},
                       .hyper = hyper});
    }
    engine_.add_parameters(specs, nullptr);
    clear();
    for (size_t i = 0; i < 2; ++i) engine_.gradient_ready(i, {gradients_[i].data(), {}}, nullptr);
    engine_.begin_step({.hyper = {hyper}, .max_gradient_norm = max_gradient_norm}, nullptr);
    engine_.finish_step(nullptr);
    during_step_ = seen();
  }

  int operator[](Call call) { return during_step_[call]; }

 private:
  static constexpr size_t kElements = 3000;

  void count(Call call) {
    const std::lock_guard lock(mutex_);
    ++calls_[call];
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    calls_.clear();
  }
  std::map<Call, int> seen() {
    const std::lock_guard lock(mutex_);
    return calls_;
  }

  std::mutex mutex_;
  std::map<Call, int> calls_;
  std::map<Call, int> during_step_;
  std::vector<std::vector<float>> weights_;
  std::vector<std::vector<float>> gradients_;
  Engine engine_;
};

TEST(EngineResident, AStepThatNeedsNoNormMeasuresAndWaitsForNothing) {
  ResidentStep step(false, 0);
  EXPECT_EQ(step[Call::kSumOfSquares], 0);
  EXPECT_EQ(step[Call::kSynchronize], 0);
  EXPECT_EQ(step[Call::kCopyToHost] + step[Call::kCopyToDevice] + step[Call::kWriteToHost], 0);
  EXPECT_EQ(step[Call::kUpdateResident], 1);
}

TEST(EngineResident, AStepThatNeedsTheNormMeasuresEachGradientOnce) {
  for (const auto& [skips, max_norm] : {std::pair(true, 0.0), std::pair(false, 1.0)}) {
    ResidentStep step(skips, max_norm);
    EXPECT_EQ(step[Call::kSumOfSquares], 2);
    EXPECT_GT(step[Call::kSynchronize], 0);
    EXPECT_EQ(step[Call::kUpdateResident], 1);
  }
}

}  // namespace
}  // namespace outboard
