// The planner: what a machine does per second, what a training run asks for, and which placement
// and schedule follow from both. Pure functions of numbers: no memory is allocated for parameters,
// no device is touched (offload/planning/machine.h measures one). docs/planning.md has the
// formulas.
#ifndef OUTBOARD_PLAN_H_
#define OUTBOARD_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "outboard/options.h"
#include "outboard/types.h"

namespace outboard {

/// How fast the CPU updates elements of one kind, with all threads and from memory.
struct UpdateSpeed {
  std::string name;  ///< see update_name()
  double seconds_per_element = 0;
};

/// What a machine does. Bandwidths in bytes per second.
struct Machine {
  double link_down = 0;         ///< device to host, alone
  double link_up = 0;           ///< host to device, alone
  double link_duplex = 0;       ///< each way, while both run
  double host_bandwidth = 0;    ///< read and written by an update that memory bounds
  double device_bandwidth = 0;  ///< read and written by a copy on the device; 0: not known
  double flops = 0;  ///< floating-point operations per second of forward and backward; 0: not known
  int threads = 0;   ///< with which the CPU figures were measured
  std::vector<UpdateSpeed> updates = {};
};

/// "AdamW 8bit split": the kind of update that an UpdateSpeed stands for.
[[nodiscard]] std::string update_name(std::string_view rule, std::string_view state_format,
                                      MasterFormat master);

/// One parameter as the planner sees it.
struct ParameterToPlan {
  size_t elements = 0;
  DType type = DType::kBF16;
  MasterFormat master = MasterFormat::kSplit;
  double state_bytes = 8;  ///< per element, all states with their scales
};

inline constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

/// What is to be planned.
struct PlanRequest {
  std::vector<ParameterToPlan> parameters;  ///< in the order of first use in the forward
  std::string update = {};     ///< the UpdateSpeed of host updates; without a match, host memory's
  double forward_s = 0;        ///< of one micro-step alone
  double backward_s = 0;       ///< of one micro-step alone, recomputation included
  int accumulation_steps = 1;  ///< micro-steps of one iteration
  bool needs_norm = true;  ///< clipping, a loss scale or skip_nonfinite: a step depends on every
                           ///< gradient
  double redo_rate = 0;    ///< share of steps in which a speculative update is redone, 0 to 1
  bool offload_gradients = true;
  bool is_attached = false;  ///< modules wait for their own weights: updates may hide in the next
                             ///< forward, and other schedules than at_step may be chosen
  size_t min_offload_elements = 4096;       ///< smaller parameters are resident
  size_t min_stream_elements = 65536;       ///< smaller parameters are not streamed
  size_t device_state_bytes = 0;            ///< budget of resident state and masters
  size_t device_bytes = kNoLimit;           ///< budget of all that the plan adds to the device
  size_t host_bytes = kNoLimit;             ///< budget of host memory
  std::optional<Schedule> schedule = {};    ///< none: the planner chooses
  std::optional<Placement> placement = {};  ///< of what is not resident; none: the planner chooses
  size_t stream_elements = size_t{8}
                           << 20;  ///< of one slot of the device's ring, see EngineOptions
  int stream_slots = 16;
  size_t staging_bytes = size_t{128} << 20;  ///< ring of host slots, for accumulation
};

/// What an iteration is made of. Seconds.
struct Prediction {
  double iteration_s = 0;
  double compute_s = 0;      ///< forward, backward and the device's part of updates
  double exposed_s = 0;      ///< what the device waits for: iteration_s - compute_s
  double link_s = 0;         ///< the link is busy for the step's copies
  double host_memory_s = 0;  ///< host memory is busy for the update and for copies beside it
  double cpu_s = 0;          ///< the CPU kernels alone
  double device_s = 0;       ///< part of compute_s: update kernels and copies in device memory
};

/// What an iteration waits for.
enum class Bound : uint8_t { kCompute, kLink, kHostMemory, kCpu };

/// Bytes that a plan holds, by kind, without alignment.
struct PlanBytes {
  size_t host_weights = 0;  ///< images of weights that the CPU updates
  size_t host_masters = 0;
  size_t host_state = 0;
  size_t host_speculation = 0;  ///< second copies of streamed masters and state
  size_t host_gradients = 0;
  size_t host_accumulators = 0;  ///< fp32 sums over micro-steps
  size_t host_staging = 0;
  size_t device_state = 0;      ///< state and masters of resident parameters
  size_t device_ring = 0;       ///< slots through which streamed state passes
  size_t device_gradients = 0;  ///< that stay until their update
  size_t device_shadows = 0;    ///< new weights of tentative updates, until they are accepted

  [[nodiscard]] size_t host() const {
    return host_weights + host_masters + host_state + host_speculation + host_gradients +
           host_accumulators + host_staging;
  }
  [[nodiscard]] size_t device() const {
    return device_state + device_ring + device_gradients + device_shadows;
  }
};

struct Plan {
  Schedule schedule = Schedule::kAtStep;
  std::vector<Placement> placements;  ///< per parameter
  bool is_speculative = false;        ///< updates begin in backward, before the norm is known
  PlanBytes bytes;
  Prediction prediction;
  Bound bound = Bound::kCompute;
  bool fits = true;                  ///< within device_bytes and host_bytes
  std::vector<std::string> reasons;  ///< sentences for people: what was chosen and why
};

/// The plan with the shortest predicted iteration among those that fit; if none does, the one that
/// exceeds its budgets least, with `fits` false and a reason that says what to do. Throws
/// Error(kValue) for a request without parameters, negative times, or a machine without bandwidths.
[[nodiscard]] Plan make_plan(const PlanRequest& request, const Machine& machine);

/// What an iteration takes with these placements (one per parameter) and this schedule; whether it
/// fits is not looked at. Throws Error(kValue) as make_plan() does.
[[nodiscard]] Prediction predict(const PlanRequest& request, const Machine& machine,
                                 const std::vector<Placement>& placements, Schedule schedule);

/// The plan that has these placements and this schedule, good or bad, without reasons. Throws
/// Error(kValue) as predict() does.
[[nodiscard]] Plan evaluate(const PlanRequest& request, const Machine& machine,
                            std::vector<Placement> placements, Schedule schedule);

/// What these placements and this schedule hold.
[[nodiscard]] PlanBytes plan_bytes(const PlanRequest& request,
                                   const std::vector<Placement>& placements, Schedule schedule);

/// What an iteration waits for: compute if less than a twentieth of it is exposed, else whatever is
/// busy longest.
[[nodiscard]] Bound bound_of(const Prediction& prediction);

/// An iteration as it was. Zeros: not measured.
struct MeasuredIteration {
  double iteration_s = 0;
  double forward_backward_s = 0;  ///< all micro-steps, without an optimizer
  double update_s = 0;            ///< time in CPU kernels
};

/// A request and a machine with which the model gives the measured iteration.
struct CorrectedModel {
  PlanRequest request;
  Machine machine;
};

/// Replaces what was measured (forward and backward, the speed of CPU updates) and then scales what
/// the prediction rests on until predict() gives measured.iteration_s for the plan's own placements
/// and schedule: the rate that bounds a plan with exposed time, else forward and backward; where
/// those were measured and leave a twentieth of the iteration unexplained, what is busy longest. No
/// rate changes by more than a factor of 4; a measurement beyond that is met as closely as that
/// allows.
/// Throws Error(kValue) unless measured.iteration_s > 0.
[[nodiscard]] CorrectedModel corrected(const PlanRequest& request, const Machine& machine,
                                       const Plan& plan, const MeasuredIteration& measured);

/// Whether backward computes the activations a second time.
enum class Recomputation : uint8_t { kNone, kActivations };

struct ComputeTime {
  double forward_s = 0;
  double backward_s = 0;
};

/// Forward and backward of a dense model by counting: 2 operations per parameter and token forward,
/// 4 backward, 2 more where activations are computed again. Throws Error(kValue) if flops <= 0.
[[nodiscard]] ComputeTime compute_time(double parameters, double tokens, double flops,
                                       Recomputation recomputation);

/// "resident", "host", "streamed"; "at_step", "next_forward", "in_backward"; "compute", "link",
/// "host memory", "CPU".
[[nodiscard]] std::string_view word_for(Placement placement);
[[nodiscard]] std::string_view word_for(Schedule schedule);
[[nodiscard]] std::string_view word_for(Bound bound);

}  // namespace outboard

#endif  // OUTBOARD_PLAN_H_
