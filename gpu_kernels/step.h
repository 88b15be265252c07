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
  void* master = nullptr;
  std::array<void*, kMaxStates> codes = {};
  std::array<float*, kMaxStates> scales = {};
  uint64_t elements = 0;
  /// Index of element 0 in the whole parameter, for the generator; a multiple of kTileElements. 0
  /// for a rule that needs norms, which are those of what is launched.
  uint64_t element_offset = 0;
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

/// Where kernels read launch tables.
enum class TablePlace {
  kDevice,  ///< copied, a few kept: a loop over the same parameters uploads nothing
  kHost,  ///< in pinned host memory: for parameters that differ at every launch, on streams beside
          ///< which the link is busy, so that a launch does not queue behind other copies
};

/// Owns launch tables, each reused while the same parameters come back. One per optimizer and
/// device, used while that device is current; not thread safe; launches cannot be captured in a
/// CUDA graph.
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
  void launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
              StreamHandle stream);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_STEP_H_
