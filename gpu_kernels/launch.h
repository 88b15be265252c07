// Between StepLauncher and the rules' kernels: the table that a launch reads, and one launcher per
// rule. No CUDA header is needed to include this.
#ifndef OUTBOARD_GPU_KERNELS_LAUNCH_H_
#define OUTBOARD_GPU_KERNELS_LAUNCH_H_

#include <cstdint>

#include "gpu_kernels/step.h"

namespace outboard::gpu {

/// Consecutive elements of one parameter that one thread block updates; a multiple of
/// kTileElements.
inline constexpr uint64_t kBlockElements = 8192;

/// Byte alignment that masters and state arrays need. Weights and gradients need none.
inline constexpr uint64_t kStateAlignment = 16;

/// Segments of one thread block.
inline constexpr uint64_t kBlockSegments = kBlockElements / kNormSegmentElements;
static_assert(kBlockSegments * kNormSegmentElements == kBlockElements);

/// What one thread block does: elements [part * kBlockElements, + kBlockElements) of a parameter.
struct BlockWork {
  uint32_t parameter;
  uint32_t part;
};

/// Where the passes of a rule that needs norms hand on what they found; null for other rules.
struct NormWorkspace {
  float* weight_sums;  ///< kBlockSegments for each block of the launch
  float* update_sums;  ///< likewise
};

/// Where the passes over rows and columns hand on what they found; null for other rules.
struct FactorWorkspace {
  float* sums;
  /// Of each parameter its place in `sums`: of each row its segments, then of each segment of
  /// kNormSegmentElements rows its columns.
  const uint64_t* offsets;
};

/// A launch table in device memory.
struct DeviceTable {
  const DeviceParameter* parameters;
  const BlockWork* blocks;
  NormWorkspace norms;
  FactorWorkspace factors;
  RuleScalars* scalars;  ///< one for each parameter, formed by earlier passes; else null
  uint32_t block_count;
  uint32_t state_mask;  ///< bit s: state s exists (in every parameter alike)
};

/// The numbers of a launch's parameters.
struct DeviceNumbersTable {
  const DeviceNumbers* numbers;  ///< null: numbers are the launch's own
  uint32_t parameter_count;
};

/// All that a launcher needs.
struct LaunchTable {
  DeviceTable step;
  DeviceNumbersTable own;
};

/// Enqueues the kernel over `table` on `stream` (before it the one that forms scalars, where
/// numbers lie on the device, and for a rule that looks at whole parameters first those that do).
/// Throws
/// Error(kDevice) when the launch fails.
using RuleLauncher = void (*)(const LaunchKey& key, const LaunchTable& table, StreamHandle stream);

/// The launcher of `rule`.
[[nodiscard]] RuleLauncher rule_launcher(RuleId rule);

/// Whether the launcher of `rule` needs a NormWorkspace.
[[nodiscard]] bool needs_norms(RuleId rule);
/// Whether it needs a FactorWorkspace.
[[nodiscard]] bool needs_factors(RuleId rule);

// launch_<stem>(), defined in rules/<stem>.cu.
#define OUTBOARD_RULE(type, stem) \
  void launch_##stem(const LaunchKey& key, const LaunchTable& table, StreamHandle stream);
#include "outboard/rules.def"
#undef OUTBOARD_RULE

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_LAUNCH_H_
