// Host declarations of the fused GPU step: no CUDA header is needed to include this. One launch
// updates any number of parameters that share a rule, formats and scalars.
#ifndef OUTBOARD_GPU_KERNELS_STEP_H_
#define OUTBOARD_GPU_KERNELS_STEP_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "outboard/types.h"
#include "quant/random.h"

namespace outboard::gpu {

/// A cudaStream_t without the CUDA headers.
using StreamHandle = void*;

/// One parameter of a launch: device pointers to its element 0. Weight and gradient hold exactly
/// `elements` elements at any element alignment (16 bytes is fastest); master and state
/// arrays are padded to whole tiles and aligned to 16 bytes. What lies between `elements` and the
/// padded length is written as zero.
struct DeviceParameter {
  const void* gradient = nullptr;
  void* weight = nullptr;
  /// Where the weight is read, if not in `weight`, which is only written then; no part of it.
  const void* old_weight = nullptr;
  void* master = nullptr;
  std::array<void*, kMaxStates> codes = {};
  std::array<float*, kMaxStates> scales = {};
  uint64_t elements = 0;
  /// Index of element 0 in the whole parameter, for the generator; a multiple of kTileElements. 0
  /// for a rule that looks at the whole parameter first, which is what is launched.
  uint64_t element_offset = 0;
  uint64_t rows = 0;  ///< of the parameter as a matrix, for rules that keep row and column means
  RandomKey random_key;
};

/// What all parameters of one launch share. Every parameter has the same states.
struct LaunchKey {
  RuleId rule;
  RuleScalars scalars;
  DType gradient_type;
  DType weight_type;
  MasterFormat master_format;
  std::array<StateFormat, kMaxStates> formats = {};
  uint32_t step = 0;

  friend bool operator==(const LaunchKey&, const LaunchKey&) = default;
};

/// Where a parameter finds what a step is made with, in device memory, when it cannot be said with
/// the launch: a launch that is captured in a CUDA graph is replayed with other values.
struct DeviceNumbers {
  int64_t* step = nullptr;        ///< updates so far; the launch counts up first
  const double* hyper = nullptr;  ///< the rule's hyper-parameters, in catalogue order
};

/// Where kernels read launch tables.
enum class TablePlace {
  kDevice,  ///< copied, a few kept: a loop over the same parameters uploads nothing
  kHost,  ///< in pinned host memory: for parameters that differ at every launch, on streams beside
          ///< which the link is busy, so that a launch does not queue behind other copies
};

/// Owns launch tables, each reused while the same parameters come back. One per optimizer and
/// device, used while that device is current; not thread safe.
class StepLauncher {
 public:
  explicit StepLauncher(TablePlace place = TablePlace::kDevice);
  /// Waits for the kernels that still read a table.
  ~StepLauncher();
  StepLauncher(const StepLauncher&) = delete;
  StepLauncher& operator=(const StepLauncher&) = delete;

  /// Enqueues one kernel on `stream` that updates every parameter of `parameters` (for a rule that
  /// needs norms three: measure, form ratios, update), and returns without waiting (a table that
  /// outgrows its memory is the exception: its replacement waits for the device). The parameters'
  /// memory must stay valid until the kernel has run. Parameters of zero elements are skipped.
  /// Throws Error(kValue) for a parameter or key that breaks the rules above, Error(kDevice) when a
  /// CUDA call fails; in both cases nothing is updated.
  /// Cannot be captured in a CUDA graph.
  void launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
              StreamHandle stream);

  /// The same with scalars and steps from device memory, one entry of `numbers` for each parameter;
  /// those of `key` are not looked at, and the gradient scale is 1. The bits are those of launch().
  /// Parameters are whole. On a stream that captures, the launch becomes part of the graph, records
  /// and awaits no event, and its table stays as it is for the life of this object, which must
  /// outlive the graph's last replay.
  void launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
              std::span<const DeviceNumbers> numbers, StreamHandle stream);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_STEP_H_
