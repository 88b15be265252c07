// The passes before the fused step of a rule that needs norms: one kernel forms the rule's measured
// values and sums their squares and those of the weight, by segments; one turns each parameter's
// sums into its scalars. Nothing of a parameter is written here.
#ifndef OUTBOARD_GPU_KERNELS_MEASURE_CUH_
#define OUTBOARD_GPU_KERNELS_MEASURE_CUH_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "gpu_kernels/cuda_check.h"
#include "gpu_kernels/segment_sum.cuh"
#include "gpu_kernels/step_run.cuh"

namespace outboard::gpu {

/// The scalars with which one parameter of a launch is measured. kOwn: the parameter has its own.
template <class Rule, bool kOwn>
__device__ __forceinline__ decltype(auto) first_scalars_of(const StepArguments<Rule>& arguments,
                                                           uint32_t parameter) {
  if constexpr (kOwn) {
    using Scalars = typename Rule::template Scalars<float>;
    return Scalars(*reinterpret_cast<const Scalars*>(arguments.table.scalars + parameter));
  } else {
    return (arguments.scalars);
  }
}

/// The scalars with which it is updated: a first pass gives it its own in any case.
template <class Rule, bool kOwn>
__device__ __forceinline__ decltype(auto) scalars_of(const StepArguments<Rule>& arguments,
                                                     uint32_t parameter) {
  constexpr bool kIsOwn = kOwn || NeedsNorms<Rule> || NeedsFactors<Rule>;
  return first_scalars_of<Rule, kIsOwn>(arguments, parameter);
}

/// Writes kRun values to shared memory, 16 bytes at a time.
template <int kRun>
__device__ __forceinline__ void put_values(const float* values, float* shared) {
#pragma unroll
  for (int i = 0; i < kRun; i += 4) {
    *reinterpret_cast<float4*>(shared + i) =
        make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
  }
}

/// Puts the weight and the measured values of this lane's run into shared memory, zeros where the
/// parameter has ended.
template <class Rule, class Types, class Formats, int kRun, bool kWhole>
__device__ __forceinline__ void measure_run(const StepArguments<Rule>& arguments,
                                            const typename Rule::template Scalars<float>& scalars,
                                            const DeviceParameter& parameter, Run run,
                                            RunWords<Rule, kRun, kWhole>& words,
                                            float* shared_weight, float* shared_measured) {
  using States = RuleStates<Rule>;
  const LaunchTypes types = Types::of(arguments.types);
  const StateAccess<Rule, Formats> states{arguments, parameter};
  RunValues<Rule, kRun> values;
  if constexpr (!kWhole) fetch_words(types, states, run, words);
  decode_words(types, states, run, words, values);
  float measured[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    float element[States::kSlots];
#pragma unroll
    for (int s = 0; s < States::kSlots; ++s) element[s] = values.state[s][i];
    measured[i] = Rule::measured(scalars, values.gradient[i], values.weight[i], element);
    if (!kWhole && i >= run.count) values.weight[i] = measured[i] = 0;
  }
  put_values<kRun>(values.weight, shared_weight);
  put_values<kRun>(measured, shared_measured);
}

/// One warp's sum of squares of the first `rows` rows of 64 values; valid in lane 0.
__device__ __forceinline__ float sum_shared(const float* values, int rows) {
  const float2* pairs = reinterpret_cast<const float2*>(values) + threadIdx.x % kWarpLanes;
  float even = 0;
  float odd = 0;
#pragma unroll 8
  for (int row = 0; row < rows; ++row) {
    const float2 pair = pairs[row * kWarpLanes];
    even = exact::fma(pair.x, pair.x, even);
    odd = exact::fma(pair.y, pair.y, odd);
  }
  return sum_lanes(even, odd);
}

/// One block measures the segments of kBlockElements elements of one parameter. Runs lie across the
/// order's 64 lanes, so values go through shared memory; two warps then sum one array each.
template <class Rule, class Types, class Formats, int kRun, bool kOwn>
__global__ void __launch_bounds__(kBlockThreads)
    measure_norms(const __grid_constant__ StepArguments<Rule> arguments) {
  __shared__ __align__(16) float weight[kNormSegmentElements];
  __shared__ __align__(16) float measured[kNormSegmentElements];
  constexpr uint64_t kRowElements = 2 * kWarpLanes;
  const BlockWork work = arguments.table.blocks[blockIdx.x];
  const DeviceParameter parameter = parameter_of(arguments, work);
  decltype(auto) scalars = first_scalars_of<Rule, kOwn>(arguments, work.parameter);
  for (uint64_t segment = 0; segment < kBlockSegments; ++segment) {
    const uint64_t begin = work.part * kBlockElements + segment * kNormSegmentElements;
    if (begin >= parameter.elements) return;  // for the whole block
    const StateAccess<Rule, Formats> states{arguments, parameter};
    for_each_run<Rule, Types, kRun>(
        arguments, parameter, begin, begin + kNormSegmentElements,
        [&](Run run, auto& words) { fetch_words(Types::of(arguments.types), states, run, words); },
        [&](Run run, auto& words, auto is_whole) {
          measure_run<Rule, Types, Formats, kRun, is_whole.value>(
              arguments, scalars, parameter, run, words, weight + (run.first - begin),
              measured + (run.first - begin));
        });
    __syncthreads();
    // Rows that do not exist are zeros, which leave a chain of fma as it is.
    const uint64_t left = parameter.elements - begin;
    const uint64_t rows = left < kNormSegmentElements ? (left + kRowElements - 1) / kRowElements
                                                      : kNormSegmentElements / kRowElements;
    const unsigned warp = threadIdx.x / kWarpLanes;
    if (warp < 2) {
      const float sum = sum_shared(warp == 0 ? weight : measured, static_cast<int>(rows));
      float* sums =
          warp == 0 ? arguments.table.norms.weight_sums : arguments.table.norms.update_sums;
      if (threadIdx.x % kWarpLanes == 0) sums[blockIdx.x * kBlockSegments + segment] = sum;
    }
    __syncthreads();
  }
}

/// The segment sums of one parameter added in fp64 in index order; every lane of the warp gets it.
__device__ __forceinline__ double add_segments(const float* sums, uint64_t segments) {
  double total = 0;
  for (uint64_t first = 0; first < segments; first += kWarpLanes) {
    const uint64_t mine = first + threadIdx.x % kWarpLanes;
    const float sum = mine < segments ? sums[mine] : 0;  // adding 0 changes nothing
#pragma unroll
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      total = exact::add(total, static_cast<double>(__shfl_sync(0xFFFFFFFFu, sum, lane)));
    }
  }
  return total;
}

/// The block that has a parameter's first part forms the parameter's scalars: one warp adds the
/// weight's sums, one those of the measured values.
template <class Rule, bool kOwn>
__global__ void __launch_bounds__(2 * kWarpLanes)
    apply_norms(const __grid_constant__ StepArguments<Rule> arguments) {
  const BlockWork work = arguments.table.blocks[blockIdx.x];
  if (work.part != 0) return;
  __shared__ double totals[2];
  const NormWorkspace norms = arguments.table.norms;
  const uint64_t elements = arguments.table.parameters[work.parameter].elements;
  const unsigned warp = threadIdx.x / kWarpLanes;
  const float* sums =
      (warp == 0 ? norms.weight_sums : norms.update_sums) + blockIdx.x * kBlockSegments;
  const double total =
      add_segments(sums, (elements + kNormSegmentElements - 1) / kNormSegmentElements);
  if (threadIdx.x % kWarpLanes == 0) totals[warp] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  using Scalars = typename Rule::template Scalars<float>;
  static_assert(sizeof(Scalars) <= sizeof(RuleScalars) && alignof(Scalars) <= alignof(RuleScalars));
  *reinterpret_cast<Scalars*>(arguments.table.scalars + work.parameter) = Rule::with_norms(
      Scalars(first_scalars_of<Rule, kOwn>(arguments, work.parameter)), totals[0], totals[1]);
}

/// Enqueues both passes: what follows on `stream` finds each parameter's scalars in device memory.
template <class Rule, class Types, class Formats, int kRun, bool kOwn>
void enqueue_norms(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  const uint32_t blocks = arguments.table.block_count;
  measure_norms<Rule, Types, Formats, kRun, kOwn><<<blocks, kBlockThreads, 0, stream>>>(arguments);
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the measuring pass");
  apply_norms<Rule, kOwn><<<blocks, 2 * kWarpLanes, 0, stream>>>(arguments);
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the pass that forms ratios");
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_MEASURE_CUH_
