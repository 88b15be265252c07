// What the runtime keeps of one parameter. Filled by state_store, moved through the stages by
// pipeline.
#ifndef OUTBOARD_OFFLOAD_PARAMETER_H_
#define OUTBOARD_OFFLOAD_PARAMETER_H_

#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "outboard/engine.h"
#include "quant/random.h"

namespace outboard {

/// Segment sums of the parameters of one add_parameters() call: on the device, and their copy on
/// the host.
struct SegmentSums {
  std::shared_ptr<void> device;  ///< null when no parameter of the batch is in device memory
  float* host = nullptr;
  size_t count = 0;
};

struct Parameter {
  ParameterSpec spec;
  size_t index = 0;
  RandomKey random_key;

  // Memory. For kHost placement of a device weight, `host_weight` is its pinned image; for a
  // host-memory weight it is the weight itself.
  void* host_weight = nullptr;
  void* master = nullptr;
  std::array<StateArray, kMaxStates> states = {};
  void* gradient_store = nullptr;       ///< pinned, the gradient's own type
  float* accumulator = nullptr;         ///< fp32 sums over micro-batches; made when first needed
  std::shared_ptr<void> device_master;  ///< of a resident parameter
  std::shared_ptr<void> device_states;  ///< of a resident parameter: codes and scales

  // Segment sums: `device_sums` is written by the device and copied to `copied_sums`; `host_sums`
  // is written by the CPU.
  float* device_sums = nullptr;
  float* copied_sums = nullptr;
  std::vector<float> host_sums;

  // Progress.
  int64_t step = 0;
  RuleScalars scalars;  ///< of the update under way, the same for all pieces
  bool keeps_loaded_master =
      false;  ///< a loaded low half belongs to weights that may be loaded after it

  // The gradient of the step to come.
  int contributions = 0;        ///< gradients taken
  int contributions_added = 0;  ///< of these, how many the sum holds; the driver counts
  bool is_accumulated = false;  ///< the sum is in the accumulator (or in an fp32 gradient store)
  std::exception_ptr gradient_failure;  ///< of the driver, adding a micro-batch: the sum is broken
  GradientSource local_gradient;        ///< for resident and host-memory parameters
  std::vector<EventPtr> arrived;        ///< per piece: its copy to the host is done
  std::vector<EventPtr> returned;  ///< per piece: its last copy to the device; null before that

  /// Updated on the host by the driver: everything but resident parameters.
  [[nodiscard]] bool is_host_updated() const { return spec.placement == Placement::kHost; }
  /// Copies pass between device and host.
  [[nodiscard]] bool is_offloaded() const {
    return is_host_updated() && spec.memory == Memory::kDevice;
  }
  [[nodiscard]] bool has_gradient() const { return contributions > 0; }

  /// Where the update reads the gradient, and of which type it is.
  [[nodiscard]] const void* gradient() const {
    if (!is_offloaded()) return local_gradient.data;
    if (is_accumulated && accumulator != nullptr) return accumulator;
    return gradient_store;
  }
  [[nodiscard]] DType gradient_type() const {
    return is_offloaded() && is_accumulated ? DType::kF32 : spec.type;
  }
  /// The segment sums that belong to the current gradient.
  [[nodiscard]] const float* sums() const {
    return spec.memory == Memory::kHost || is_accumulated ? host_sums.data() : copied_sums;
  }
};

using ParameterPtr = std::unique_ptr<Parameter>;

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_PARAMETER_H_
