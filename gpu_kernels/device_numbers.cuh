// The pass before a step whose numbers lie in device memory: it counts the step and forms each
// parameter's scalars, with the bits that the host would form. No element is touched here.
#ifndef OUTBOARD_GPU_KERNELS_DEVICE_NUMBERS_CUH_
#define OUTBOARD_GPU_KERNELS_DEVICE_NUMBERS_CUH_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "gpu_kernels/cuda_check.h"
#include "gpu_kernels/step_run.cuh"

namespace outboard::gpu {

inline constexpr unsigned kNumbersThreads = 128;

/// The step of one parameter of a launch, for the generator: the launch's own.
template <bool kOwn>
struct StepCount {
  template <class Rule>
  __device__ __forceinline__ StepCount(const StepArguments<Rule>&, uint32_t) {}
  template <class Rule>
  __device__ __forceinline__ uint32_t of(const StepArguments<Rule>& arguments) const {
    return arguments.step;
  }
};

/// The parameter's own, read once.
template <>
struct StepCount<true> {
  template <class Rule>
  __device__ __forceinline__ StepCount(const StepArguments<Rule>& arguments, uint32_t parameter)
      : value(static_cast<uint32_t>(*arguments.own.numbers[parameter].step)) {}
  template <class Rule>
  __device__ __forceinline__ uint32_t of(const StepArguments<Rule>&) const {
    return value;
  }
  uint32_t value;
};

/// One thread for each parameter.
template <class Rule>
__global__ void __launch_bounds__(kNumbersThreads)
    form_scalars(const __grid_constant__ StepArguments<Rule> arguments) {
  const unsigned parameter = blockIdx.x * kNumbersThreads + threadIdx.x;
  if (parameter >= arguments.own.parameter_count) return;
  const DeviceNumbers numbers = arguments.own.numbers[parameter];
  const int64_t step = *numbers.step + 1;
  *numbers.step = step;
  using Scalars = typename Rule::template Scalars<float>;
  static_assert(sizeof(Scalars) <= sizeof(RuleScalars) && alignof(Scalars) <= alignof(RuleScalars));
  const std::span<const double> hyper(numbers.hyper, Rule::kHyperParameters.size());
  *reinterpret_cast<Scalars*>(arguments.table.scalars + parameter) =
      Rule::template scalars<float>(hyper, step, 1.0);
}

/// Enqueues it: what follows on `stream` finds each parameter's step and scalars.
template <class Rule>
void enqueue_numbers(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  const unsigned blocks = (arguments.own.parameter_count + kNumbersThreads - 1) / kNumbersThreads;
  form_scalars<Rule><<<blocks, kNumbersThreads, 0, stream>>>(arguments);
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the pass that forms scalars");
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_DEVICE_NUMBERS_CUH_
