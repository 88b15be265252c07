// A model of a few parameters with made-up gradients, for tests of the libtorch face: where it
// lies, and how one step's backward looks. No expectations here.
#ifndef OUTBOARD_TESTS_TORCH_TRAINING_H_
#define OUTBOARD_TESTS_TORCH_TRAINING_H_

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/cuda.h>

#include <string>
#include <vector>

#include "outboard/torch/cpu_offload_optimizer.h"

namespace outboard {

/// How a test runs the pipeline.
enum class Place { kInPlace, kSimulated, kGpu };

inline std::string name_of(Place place) {
  return place == Place::kInPlace ? "InPlace" : place == Place::kSimulated ? "Simulated" : "Gpu";
}

/// Small chunks, so that parameters are split and merged; delays, so that a missing wait shows.
inline CPUOffloadOptions options_for(Place place) {
  CPUOffloadOptions options{.min_offload_elements = 16, .threads = 2, .chunk_elements = 1024};
  if (place == Place::kSimulated) {
    options.simulated_device = {.seed = 7, .max_delay_microseconds = 200, .poison_targets = true};
  }
  return options;
}

/// Three parameters: one that is split into chunks, one that is merged, one that stays resident.
struct Training {
  explicit Training(Place place, at::ScalarType type = at::kFloat) {
    const auto device = place == Place::kGpu ? at::kCUDA : at::kCPU;
    int64_t start = 0;
    for (const std::vector<int64_t>& sizes :
         std::vector<std::vector<int64_t>>{{67, 33}, {300}, {7}}) {
      at::Tensor values = pattern(sizes, start++);
      parameters.push_back(values.to(device, type).requires_grad_(true));
    }
  }

  /// Values that every type holds exactly.
  static at::Tensor pattern(at::IntArrayRef sizes, int64_t start) {
    const int64_t count = c10::multiply_integers(sizes);
    const at::Tensor numbers = (at::arange(count, at::kLong) * 7 + start * 5).remainder(13) - 6;
    return (numbers.to(at::kFloat) / 8).view(sizes);
  }

  /// One backward; gradients differ from step to step and element to element.
  void backward(int64_t step, double factor = 1) const {
    at::Tensor loss;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const at::Tensor& weight = parameters[i];
      const at::Tensor slope =
          pattern(weight.sizes(), 3 * step + static_cast<int64_t>(i)).to(weight.options()) * factor;
      const at::Tensor term = (weight * slope).sum();
      loss = loss.defined() ? loss + term : term;
    }
    loss.backward();
  }

  template <class Optimizer>
  void run(Optimizer& optimizer, int64_t first, int64_t last) const {
    for (int64_t step = first; step < last; ++step) {
      backward(step);
      optimizer.step();
      optimizer.zero_grad();
    }
  }

  std::vector<at::Tensor> parameters;
};

inline void expect_equal(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& want,
                         const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const at::Tensor a = got[i].detach().cpu();
    EXPECT_TRUE(at::equal(a, want[i].detach().cpu()))
        << what << ": parameter " << i << " differs by up to "
        << (a.to(at::kDouble) - want[i].detach().cpu().to(at::kDouble)).abs().max().item<double>();
  }
}

inline void expect_close(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const at::Tensor a = got[i].detach().cpu();
    const at::Tensor b = want[i].detach().cpu();
    EXPECT_TRUE(at::allclose(a, b, /*rtol=*/2e-6, /*atol=*/2e-6))
        << "parameter " << i << " differs by up to " << (a - b).abs().max().item<double>();
  }
}

inline std::vector<at::Tensor> copies(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.detach().clone());
  return result;
}

/// Parameterised by place; without a GPU the tests that need one are skipped.
class OnEveryPlace : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    if (GetParam() == Place::kGpu && !torch::cuda::is_available()) GTEST_SKIP() << "no GPU";
  }
};
#define OUTBOARD_ON_EVERY_PLACE(suite)                                                       \
  INSTANTIATE_TEST_SUITE_P(Place, suite,                                                     \
                           testing::Values(Place::kInPlace, Place::kSimulated, Place::kGpu), \
                           [](const auto& info) { return name_of(info.param); })

}  // namespace outboard

#endif  // OUTBOARD_TESTS_TORCH_TRAINING_H_
