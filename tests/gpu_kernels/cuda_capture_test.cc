// Launches with numbers in device memory, on a stream and replayed from a CUDA graph, against the
// CPU: the scalars that the device forms, and every byte of the step, for every rule and format.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpu_kernels/cuda_problem.h"
#include "gpu_kernels/step.h"
#include "outboard/error.h"

namespace outboard::test {
namespace {

const std::vector<Shape> kShapes{{1}, {255, 1, 1}, {257}, {9001}, {4096}};

/// Step counts of parameters and one list of hyper-parameters, in device memory.
class Numbers {
 public:
  Numbers(size_t parameters, size_t hyper_parameters)
      : parameters_(parameters),
        steps_(parameters * sizeof(int64_t)),
        hyper_(hyper_parameters * sizeof(double)) {
    set_steps(0);
  }

  void set_steps(int64_t step) {
    const std::vector<int64_t> counts(parameters_, step);
    steps_.upload(counts.data(), counts.size() * sizeof(int64_t));
  }
  void set_hyper(const std::vector<double>& hyper) {
    hyper_.upload(hyper.data(), hyper.size() * sizeof(double));
  }
  [[nodiscard]] std::vector<int64_t> steps() const {
    std::vector<int64_t> counts(parameters_);
    steps_.download(counts.data(), counts.size() * sizeof(int64_t));
    return counts;
  }
  [[nodiscard]] std::vector<gpu::DeviceNumbers> entries() const {
    std::vector<gpu::DeviceNumbers> entries;
    for (size_t i = 0; i < parameters_; ++i) {
      entries.push_back({.step = reinterpret_cast<int64_t*>(steps_.data()) + i,
                         .hyper = reinterpret_cast<const double*>(hyper_.data())});
    }
    return entries;
  }

 private:
  size_t parameters_;
  DeviceBytes steps_;
  DeviceBytes hyper_;
};

/// A stream, and at most one graph that was captured on it.
class CapturedStream {
 public:
  CapturedStream() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~CapturedStream() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
    cudaStreamDestroy(stream_);
  }

  /// In the mode in which torch captures.
  template <class Enqueue>
  void capture(const Enqueue& enqueue) {
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
    enqueue(stream_);
    ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&graph_, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
  }
  void replay() {
    ASSERT_EQ(cudaGraphLaunch(graph_, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

class GpuCapture : public testing::TestWithParam<size_t> {
 protected:
  [[nodiscard]] static RuleId rule() { return static_cast<RuleId>(GetParam()); }
  template <class Action>
  static void for_each_combination(std::span<const std::string_view> formats,
                                   const Action& action) {
    for (const auto& hyper : hyper_parameter_sets(rule_info(rule()))) {
      for (const WeightKind weight : kWeightKinds) {
        for (const std::string_view format : formats) {
          action(Combination{rule(), hyper, weight.type, weight.type, weight.master,
                             state_formats_named(format)});
        }
      }
    }
  }
};

TEST_P(GpuCapture, NumbersOnTheDeviceGiveTheBitsOfTheCpu) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  uint64_t seed = 1;
  for_each_combination(state_format_names(), [&](const Combination& combination) {
    Problem problem(combination, kShapes, ++seed);
    problem.use_gradient_scale(1);
    Numbers numbers(kShapes.size(), combination.hyper.size());
    numbers.set_hyper(combination.hyper);
    for (const int64_t step : {1, 2, 1000, 1001}) {
      if (step == 1000) numbers.set_steps(999);
      problem.step_on_cpu(step);
      problem.step_on_gpu(launcher, numbers.entries(), nullptr);
    }
    ASSERT_EQ(problem.difference(), "") << "seed " << seed;
    ASSERT_EQ(numbers.steps()[0], 1001);
  });
}

TEST_P(GpuCapture, ReplaysFollowStepsAndHyperParameters) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  uint64_t seed = 1;
  constexpr std::array<std::string_view, 5> kFormats{"fp32", "8bit", "4bit", "fp8", "bf16"};
  for_each_combination(kFormats, [&](const Combination& combination) {
    Problem problem(combination, kShapes, ++seed);
    problem.use_gradient_scale(1);
    Numbers numbers(kShapes.size(), combination.hyper.size());
    std::vector<double> hyper = combination.hyper;
    numbers.set_hyper(hyper);
    CapturedStream stream;
    problem.step_on_cpu(1);
    problem.step_on_gpu(launcher, numbers.entries(), stream.get());
    ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
    ASSERT_NO_FATAL_FAILURE(stream.capture([&](cudaStream_t capturing) {
      problem.step_on_gpu(launcher, numbers.entries(), capturing);
    }));
    ASSERT_EQ(numbers.steps()[0], 1) << "the capture itself ran";
    for (int64_t step = 2; step <= 5; ++step) {
      hyper[0] *= 0.5;  // the learning rate comes first in every rule
      numbers.set_hyper(hyper);
      problem.use_hyper(hyper);
      problem.refresh_gradients(seed * 7 + static_cast<uint64_t>(step));
      problem.step_on_cpu(step);
      ASSERT_NO_FATAL_FAILURE(stream.replay());
    }
    ASSERT_EQ(problem.difference(), "") << "seed " << seed;
  });
}

INSTANTIATE_TEST_SUITE_P(Rules, GpuCapture, testing::Range(size_t{0}, kRuleCount),
                         [](const auto& info) {
                           return std::string(rule_info(static_cast<RuleId>(info.param)).name);
                         });

Combination adamw() {
  std::vector<double> hyper;
  for (const auto& parameter : rule_info(RuleId::kAdamW).hyper_parameters) {
    hyper.push_back(parameter.default_value);
  }
  return {RuleId::kAdamW,        hyper,
          DType::kF32,           DType::kF32,
          MasterFormat::kWeight, state_formats_named("8bit")};
}

TEST(GpuCaptureTables, GraphsKeepTheirTablesThroughManyOtherLaunches) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  Problem problem(adamw(), kShapes, 3);
  problem.use_gradient_scale(1);
  Numbers numbers(kShapes.size(), adamw().hyper.size());
  numbers.set_hyper(adamw().hyper);
  CapturedStream stream;
  // Nothing was launched before: the capture makes the table, and no memory is missing for it.
  ASSERT_NO_FATAL_FAILURE(stream.capture([&](cudaStream_t capturing) {
    problem.step_on_gpu(launcher, numbers.entries(), capturing);
  }));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Problem other(adamw(), {{1000 + 100 * seed}, {5}}, seed);
    other.step_on_cpu(1);
    other.step_on_gpu(launcher, 1);
    ASSERT_EQ(other.difference(), "");
  }
  for (int64_t step = 1; step <= 2; ++step) {
    problem.step_on_cpu(step);
    ASSERT_NO_FATAL_FAILURE(stream.replay());
  }
  EXPECT_EQ(problem.difference(), "");
}

TEST(GpuCaptureErrors, SayWhatIsMissing) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  Problem problem(adamw(), {{100}, {200}}, 4);
  const auto message = [&](const std::vector<gpu::DeviceNumbers>& numbers) -> std::string {
    try {
      problem.step_on_gpu(launcher, numbers, nullptr);
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  Numbers numbers(2, adamw().hyper.size());
  std::vector<gpu::DeviceNumbers> entries = numbers.entries();
  entries.pop_back();
  EXPECT_NE(message(entries).find("1 entries of numbers for 2"), std::string::npos);
  entries.push_back({.step = entries[0].step, .hyper = nullptr});
  EXPECT_NE(message(entries).find("parameter 1"), std::string::npos);
}

}  // namespace
}  // namespace outboard::test
