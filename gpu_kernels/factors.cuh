// The passes before the fused step of a rule that keeps row and column means: one kernel sums
// squared gradients along both, one moves the means, one gives the rows' mean to each parameter's
// scalars; and the product that the fused step reads. Orders are those of cpu_kernels/factors.h.
#ifndef OUTBOARD_GPU_KERNELS_FACTORS_CUH_
#define OUTBOARD_GPU_KERNELS_FACTORS_CUH_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "gpu_kernels/cuda_check.h"
#include "gpu_kernels/measure.cuh"
#include "gpu_kernels/segment_sum.cuh"
#include "gpu_kernels/step_run.cuh"
#include "outboard/rules/factors.h"
#include "quant/device_rounding.cuh"
#include "quant/rounding.h"

namespace outboard::gpu {

/// Columns that a block sums together, one for each lane of a warp.
inline constexpr uint64_t kStripColumns = kWarpLanes;
/// The order's lanes of a column that one thread adds up.
inline constexpr int kColumnLanes = 64 / (kBlockThreads / kWarpLanes);

/// A parameter as a matrix, and where its sums are.
struct FactorShape {
  uint64_t rows;
  uint64_t columns;
  uint64_t row_segments;     ///< of one row
  uint64_t column_segments;  ///< of one column
  uint64_t parts;            ///< blocks that the parameter has in the launch
  float* row_sums;
  float* column_sums;

  __device__ __forceinline__ FactorShape(const DeviceTable& table, const BlockWork& work) {
    const DeviceParameter& parameter = table.parameters[work.parameter];
    rows = parameter.rows;
    columns = parameter.elements / rows;
    row_segments = (columns + kNormSegmentElements - 1) / kNormSegmentElements;
    column_segments = (rows + kNormSegmentElements - 1) / kNormSegmentElements;
    parts = (parameter.elements + kBlockElements - 1) / kBlockElements;
    row_sums = table.factors.sums + table.factors.offsets[work.parameter];
    column_sums = row_sums + rows * row_segments;
  }
  /// The first segment of a row that begins at element `first` or behind it.
  [[nodiscard]] __device__ __forceinline__ uint64_t segment_at(uint64_t first) const {
    if (first >= rows * columns) return rows * row_segments;
    const uint64_t column = first % columns;
    return first / columns * row_segments +
           (column + kNormSegmentElements - 1) / kNormSegmentElements;
  }
};

/// Element `i` of a gradient, widened.
template <DType kType>
__device__ __forceinline__ float gradient_at(const void* gradient, uint64_t i) {
  if constexpr (kType == DType::kF32) {
    return static_cast<const float*>(gradient)[i];
  } else if constexpr (kType == DType::kBF16) {
    return quant::f32_from_bf16(static_cast<const uint16_t*>(gradient)[i]);
  } else {
    return quant::device::f32_from_f16(static_cast<const uint16_t*>(gradient)[i]);
  }
}

/// The segments of rows that begin in this block's elements, a warp for each.
template <DType kType>
__device__ __forceinline__ void sum_rows(const FactorShape& shape, const void* gradient,
                                         float gradient_scale, uint64_t part) {
  const uint64_t lane = threadIdx.x % kWarpLanes;
  const uint64_t last = shape.segment_at((part + 1) * kBlockElements);
  for (uint64_t segment = shape.segment_at(part * kBlockElements) + threadIdx.x / kWarpLanes;
       segment < last; segment += kBlockThreads / kWarpLanes) {
    const uint64_t column = segment % shape.row_segments * kNormSegmentElements;
    const uint64_t left = shape.columns - column;
    const uint64_t count = left < kNormSegmentElements ? left : kNormSegmentElements;
    const uint64_t first = segment / shape.row_segments * shape.columns + column;
    float even = 0;
    float odd = 0;
#pragma unroll 4
    for (uint64_t i = 2 * lane; i < count; i += 2 * kWarpLanes) {
      const float x = exact::mul(gradient_at<kType>(gradient, first + i), gradient_scale);
      even = exact::fma(x, x, even);
      if (i + 1 >= count) continue;
      const float y = exact::mul(gradient_at<kType>(gradient, first + i + 1), gradient_scale);
      odd = exact::fma(y, y, odd);
    }
    __syncwarp();
    const float sum = sum_lanes(even, odd);
    if (lane == 0) shape.row_sums[segment] = sum;
  }
}

/// Strips of kStripColumns columns and one segment of rows, dealt to the parameter's blocks. A lane
/// has a column; the warps share the order's 64 lanes.
template <DType kType>
__device__ __forceinline__ void sum_columns(const FactorShape& shape, const void* gradient,
                                            float gradient_scale, uint64_t part) {
  __shared__ float lanes[64][kStripColumns];
  const uint64_t lane = threadIdx.x % kWarpLanes;
  const uint64_t warp = threadIdx.x / kWarpLanes;
  const uint64_t strips = (shape.columns + kStripColumns - 1) / kStripColumns;
  for (uint64_t strip = part; strip < strips * shape.column_segments; strip += shape.parts) {
    const uint64_t segment = strip / strips;
    const uint64_t column = strip % strips * kStripColumns + lane;
    const uint64_t first = segment * kNormSegmentElements;
    const uint64_t end = first + kNormSegmentElements;
    const uint64_t last = end < shape.rows ? end : shape.rows;
    float sums[kColumnLanes] = {};
    for (uint64_t base = first + warp * kColumnLanes; base < last && column < shape.columns;
         base += 64) {
#pragma unroll
      for (int k = 0; k < kColumnLanes; ++k) {
        if (base + k >= last) continue;
        const float value = gradient_at<kType>(gradient, (base + k) * shape.columns + column);
        const float x = exact::mul(value, gradient_scale);
        sums[k] = exact::fma(x, x, sums[k]);
      }
    }
    __syncthreads();  // the strip before this one has been read
#pragma unroll
    for (int k = 0; k < kColumnLanes; ++k) lanes[warp * kColumnLanes + k][lane] = sums[k];
    for (uint64_t half = 32; half > 0; half /= 2) {
      __syncthreads();
      for (uint64_t i = warp; i < half; i += kBlockThreads / kWarpLanes) {
        lanes[i][lane] = exact::add(lanes[i][lane], lanes[i + half][lane]);
      }
    }
    // Row 0 was written by the warp that reads it.
    if (warp == 0 && column < shape.columns) {
      shape.column_sums[segment * shape.columns + column] = lanes[0][lane];
    }
  }
}

template <class Rule, bool kOwn>
__global__ void __launch_bounds__(kBlockThreads)
    sum_factors(const __grid_constant__ StepArguments<Rule> arguments) {
  const BlockWork work = arguments.table.blocks[blockIdx.x];
  const FactorShape shape(arguments.table, work);
  const void* gradient = arguments.table.parameters[work.parameter].gradient;
  const float scale =
      Rule::factor_scalars(first_scalars_of<Rule, kOwn>(arguments, work.parameter)).gradient_scale;
  const auto sum = [&](auto type) {
    sum_rows<type.value>(shape, gradient, scale, work.part);
    sum_columns<type.value>(shape, gradient, scale, work.part);
  };
  switch (arguments.types.gradient) {
    case DType::kF32:
      sum(std::integral_constant<DType, DType::kF32>{});
      break;
    case DType::kBF16:
      sum(std::integral_constant<DType, DType::kBF16>{});
      break;
    case DType::kF16:
      sum(std::integral_constant<DType, DType::kF16>{});
      break;
  }
}

/// Moves one mean, of which the segment sums lie `stride` apart.
__device__ __forceinline__ void move_mean(const float* sums, uint64_t segments, uint64_t stride,
                                          uint64_t count, float one_minus_beta, float& average) {
  double total = 0;
  for (uint64_t i = 0; i < segments; ++i) {
    total = exact::add(total, static_cast<double>(sums[i * stride]));
  }
  average = rules::moved_factor(average, total, static_cast<double>(count), one_minus_beta);
}

template <class Rule, bool kOwn>
__global__ void __launch_bounds__(kBlockThreads)
    move_factors(const __grid_constant__ StepArguments<Rule> arguments) {
  using States = RuleStates<Rule>;
  const BlockWork work = arguments.table.blocks[blockIdx.x];
  const FactorShape shape(arguments.table, work);
  const DeviceParameter& parameter = arguments.table.parameters[work.parameter];
  auto* rows = static_cast<float*>(parameter.codes[States::kRows]);
  auto* columns = static_cast<float*>(parameter.codes[States::kRows + 1]);
  const float one_minus_beta =
      Rule::factor_scalars(first_scalars_of<Rule, kOwn>(arguments, work.parameter)).one_minus_beta;
  for (uint64_t i = work.part * kBlockThreads + threadIdx.x; i < shape.rows + shape.columns;
       i += shape.parts * kBlockThreads) {
    if (i < shape.rows) {
      move_mean(shape.row_sums + i * shape.row_segments, shape.row_segments, 1, shape.columns,
                one_minus_beta, rows[i]);
    } else {
      const uint64_t j = i - shape.rows;
      move_mean(shape.column_sums + j, shape.column_segments, shape.columns, shape.rows,
                one_minus_beta, columns[j]);
    }
  }
}

/// The block that has a parameter's first part forms the parameter's scalars.
template <class Rule, bool kOwn>
__global__ void __launch_bounds__(kWarpLanes)
    average_rows(const __grid_constant__ StepArguments<Rule> arguments) {
  const BlockWork work = arguments.table.blocks[blockIdx.x];
  if (work.part != 0) return;
  const DeviceParameter& parameter = arguments.table.parameters[work.parameter];
  const auto* rows = static_cast<const float*>(parameter.codes[RuleStates<Rule>::kRows]);
  double even = 0;
  double odd = 0;
#pragma unroll 8
  for (uint64_t i = 2 * threadIdx.x; i < parameter.rows; i += rules::kRowMeanLanes) {
    even = exact::add(even, static_cast<double>(rows[i]));
    if (i + 1 < parameter.rows) odd = exact::add(odd, static_cast<double>(rows[i + 1]));
  }
  __syncwarp();
  const double total = sum_lanes(even, odd);
  if (threadIdx.x != 0) return;
  using Scalars = typename Rule::template Scalars<float>;
  static_assert(sizeof(Scalars) <= sizeof(RuleScalars) && alignof(Scalars) <= alignof(RuleScalars));
  *reinterpret_cast<Scalars*>(arguments.table.scalars + work.parameter) =
      Rule::with_row_mean(Scalars(first_scalars_of<Rule, kOwn>(arguments, work.parameter)),
                          exact::div(total, static_cast<double>(parameter.rows)));
}

/// Enqueues the three passes: what follows on `stream` finds moved means, and each parameter's
/// scalars in device memory.
template <class Rule, bool kOwn>
void enqueue_factors(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  const uint32_t blocks = arguments.table.block_count;
  sum_factors<Rule, kOwn><<<blocks, kBlockThreads, 0, stream>>>(arguments);
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the pass that sums squares");
  move_factors<Rule, kOwn><<<blocks, kBlockThreads, 0, stream>>>(arguments);
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the pass that moves means");
  average_rows<Rule, kOwn><<<blocks, kWarpLanes, 0, stream>>>(arguments);
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the pass over rows");
}

/// Puts the second moments of `count` elements from `first` in the place of the rows; zeros behind
/// them.
template <class Rule, int kRun>
__device__ __forceinline__ void join_factors(const FactorScalars& scalars,
                                             const DeviceParameter& parameter, uint64_t first,
                                             int count, RunValues<Rule, kRun>& values) {
  constexpr int kRows = RuleStates<Rule>::kRows;
  const auto* rows = static_cast<const float*>(parameter.codes[kRows]);
  const auto* columns = static_cast<const float*>(parameter.codes[kRows + 1]);
  const uint64_t width = parameter.elements / parameter.rows;
  uint64_t row = first / width;
  uint64_t column = first % width;
  float share = count > 0 ? rules::row_share(rows[row], scalars.row_mean) : 0.0f;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    values.state[kRows][i] = 0;
    if (i >= count) continue;
    if (column == width) {
      column = 0;
      share = rules::row_share(rows[++row], scalars.row_mean);
    }
    values.state[kRows][i] = rules::factored_moment(share, columns[column++]);
  }
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_FACTORS_CUH_
