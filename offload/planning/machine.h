// Measures what the planner needs to know of a machine. Nothing is remembered between calls: who
// wants to measure once keeps the result.
#ifndef OUTBOARD_OFFLOAD_PLANNING_MACHINE_H_
#define OUTBOARD_OFFLOAD_PLANNING_MACHINE_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "outboard/device.h"
#include "outboard/plan.h"
#include "outboard/rule.h"
#include "outboard/types.h"

namespace outboard {

/// One kind of update to measure on the CPU.
struct UpdateToMeasure {
  RuleId rule = RuleId::kAdamW;
  std::string state_format = "fp32";
  DType type = DType::kBF16;
  MasterFormat master = MasterFormat::kSplit;
};

struct MachineOptions {
  int threads = 0;  ///< of the update; 0: as an optimizer chooses
  std::vector<UpdateToMeasure> updates = {};
  /// Bytes of one copy, and elements of one update: large enough that caches do not hold them and
  /// that starting does not count.
  size_t copy_bytes = size_t{64} << 20;
  size_t update_elements = size_t{24} << 20;
};

/// Measures the link (each way alone, then both at the same time, with memory that is pinned if the
/// device grants it), copies in device memory, the CPU kernels of `options.updates` on scratch
/// memory with all threads, and from the fastest of them, or of plain fp32 AdamW, the bandwidth of
/// host memory. Takes 0.5 to 2 seconds and blocks; work on the device or the cores meanwhile makes
/// the figures worse. flops stay 0, that depends on the model. `device` may be null: its figures
/// stay 0, too. Throws Error(kMemory) if scratch memory cannot be had (some 0.7 GiB with the
/// defaults), Error(kValue) for unknown formats, rules that need norms, or sizes of 0.
[[nodiscard]] Machine measure_machine(const std::shared_ptr<Device>& device,
                                      const MachineOptions& options = {});

/// Threads that an optimizer with this option has for updates; 0: chosen from the cores that the
/// process may use.
[[nodiscard]] int update_threads(int threads);

/// Bytes per element of all states of `rule` under its default hyper-parameters, with scales.
[[nodiscard]] double state_bytes(RuleId rule, const std::string& state_format);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_PLANNING_MACHINE_H_
