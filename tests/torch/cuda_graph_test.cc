// Captured steps of LowBitOptimizer: every replay is a step, and options that change in between
// count.
#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include "outboard/error.h"
#include "outboard/torch/low_bit_optimizer.h"
#include "training.h"

namespace outboard {
namespace {

using torch::optim::AdamWOptions;

LowBitOptions options_with(bool is_capturable) {
  return {.min_quantized_elements = 16, .seed = 5, .capturable = is_capturable};
}

/// Gradients that keep their addresses.
void fill_gradients(const Training& training, int64_t step) {
  for (size_t i = 0; i < training.parameters.size(); ++i) {
    at::Tensor parameter = training.parameters[i];
    const at::Tensor value =
        Training::pattern(parameter.sizes(), 3 * step + static_cast<int64_t>(i));
    if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter);
    parameter.mutable_grad().copy_(value);
  }
}

class CudaGraphTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no GPU";
  }
};

TEST_F(CudaGraphTest, ReplaysAreSteps) {
  const c10::impl::VirtualGuardImpl guard(at::kCUDA);
  const c10::Stream stream = guard.getStreamFromGlobalPool({at::kCUDA, 0}, false);
  const c10::StreamGuard current(stream);
  auto* const handle = static_cast<cudaStream_t>(guard.getStreamNativeHandle(stream));
  const Training training(Place::kGpu, at::kBFloat16);
  const Training reference(Place::kGpu, at::kBFloat16);
  LowBitOptimizer optimizer(training.parameters, AdamWOptions(1e-2), options_with(true));
  LowBitOptimizer usual(reference.parameters, AdamWOptions(1e-2), options_with(false));
  fill_gradients(training, 0);
  optimizer.step();
  ASSERT_EQ(cudaStreamSynchronize(handle), cudaSuccess);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replayed = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  optimizer.step();
  EXPECT_THROW(optimizer.update_hyperparameters(), Error);
  ASSERT_EQ(cudaStreamEndCapture(handle, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&replayed, graph, 0), cudaSuccess);
  for (int64_t step = 1; step < 5; ++step) {
    optimizer.param_groups()[0].options().set_lr(1e-2 / static_cast<double>(step));
    optimizer.update_hyperparameters();
    fill_gradients(training, step);
    ASSERT_EQ(cudaGraphLaunch(replayed, handle), cudaSuccess);
  }
  for (int64_t step = 0; step < 5; ++step) {
    usual.param_groups()[0].options().set_lr(step == 0 ? 1e-2 : 1e-2 / static_cast<double>(step));
    fill_gradients(reference, step);
    usual.step();
  }
  expect_equal(training.parameters, reference.parameters, "weights");
  EXPECT_EQ(optimizer.state_of(training.parameters[0]).at("step").item<float>(), 5);
  EXPECT_THROW(optimizer.convert_state("4bit"), Error);
  cudaGraphExecDestroy(replayed);
  cudaGraphDestroy(graph);
}

TEST_F(CudaGraphTest, ACaptureWithoutAStepBeforeIsRefused) {
  const c10::impl::VirtualGuardImpl guard(at::kCUDA);
  const c10::Stream stream = guard.getStreamFromGlobalPool({at::kCUDA, 0}, false);
  const c10::StreamGuard current(stream);
  auto* const handle = static_cast<cudaStream_t>(guard.getStreamNativeHandle(stream));
  const Training training(Place::kGpu);
  LowBitOptimizer optimizer(training.parameters, AdamWOptions(1e-2), options_with(true));
  fill_gradients(training, 0);
  ASSERT_EQ(cudaStreamSynchronize(handle), cudaSuccess);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_THROW(optimizer.step(), Error);
  ASSERT_EQ(cudaStreamEndCapture(handle, &graph), cudaSuccess);
  cudaGraphDestroy(graph);
  optimizer.step();
  EXPECT_EQ(optimizer.state_of(training.parameters[0]).at("step").item<float>(), 1);
}

}  // namespace
}  // namespace outboard
