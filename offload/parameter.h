// What the runtime keeps of one parameter. Filled by state_store, moved through the stages by
// pipeline.
#ifndef OUTBOARD_OFFLOAD_PARAMETER_H_
#define OUTBOARD_OFFLOAD_PARAMETER_H_

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
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

/// A master and states: those that are, or a second copy that may become them.
struct StateCopy {
  void* master = nullptr;
  std::array<StateArray, kMaxStates> states = {};
};

struct StreamWork;

/// An update that began in backward, before the step that it belongs to.
struct EarlyUpdate {
  bool is_final = false;  ///< made in place, because nothing could change the gradient any more
  bool is_void = false;   ///< the gradient changed since
  std::vector<std::shared_ptr<StreamWork>> works = {};
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
  StateCopy second;                     ///< of a streamed parameter: where early updates go
  std::shared_ptr<void> shadow;         ///< and their weights, on the device

  // Segment sums: `device_sums` is written by the device and copied to `copied_sums`; `host_sums`
  // is written by the CPU.
  float* device_sums = nullptr;
  float* copied_sums = nullptr;
  std::vector<float> host_sums;

  // Progress.
  int64_t step = 0;
  RuleScalars scalars;  ///< of the update under way, the same for all pieces
  size_t rank = 0;      ///< the next forward needs the parameter with the lowest first
  // Of the update under way; guarded by Progress.
  size_t pieces_under_way = 0;
  bool is_unsettled = false;
  EventPtr weight_current;
  bool keeps_loaded_master =
      false;  ///< a loaded master belongs to weights that may be loaded after it

  // The gradient of the step to come.
  int contributions = 0;        ///< gradients taken
  int contributions_added = 0;  ///< of these, how many the sum holds; the driver counts
  bool is_accumulated = false;  ///< the sum is in the accumulator (or in an fp32 gradient store)
  std::exception_ptr gradient_failure;  ///< of the driver, adding a micro-batch: the sum is broken
  GradientSource local_gradient;        ///< where it stays: resident, streamed, host-memory weights
  EventPtr gradient_ready;              ///< of a streamed parameter
  std::vector<EventPtr> arrived;        ///< per piece: its copy to the host is done
  uint64_t taken_at = 0;                ///< which gradient of all it was
  int uses = 0;                         ///< backwards that gave a gradient since the last step
  int expected_uses = 0;                ///< in the last step
  std::optional<EarlyUpdate> early;

  /// Per piece: the copy that ends its last update is done (of the weight to the device, or, of
  /// streamed parameters, of the state to the host); null before that. The lane's own.
  std::vector<EventPtr> returned;

  /// Updated on the host: everything but resident and streamed parameters.
  [[nodiscard]] bool is_host_updated() const { return spec.placement == Placement::kHost; }
  [[nodiscard]] bool is_streamed() const { return spec.placement == Placement::kStreamed; }
  [[nodiscard]] bool has_host_state() const { return spec.placement != Placement::kResident; }
  /// Copies pass between device and host.
  [[nodiscard]] bool is_offloaded() const {
    return is_host_updated() && spec.memory == Memory::kDevice;
  }
  /// Its rule looks at the whole parameter first, so that no piece can be updated before all of the
  /// gradient is there.
  [[nodiscard]] bool needs_whole() const {
    return spec.rule && rule_info(*spec.rule).needs_whole();
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
