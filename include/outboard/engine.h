// The core without any framework: parameters as spans, gradients as they appear, one step. The
// libtorch face is built on it, and so can any other trainer be.
//
//   outboard::Engine engine({.max_gradient_norm = 1.0}, outboard::make_cuda_device(0));
//   engine.add_parameters(specs, stream);
//   ... forward and backward on `stream`; for each gradient: engine.gradient_ready(i, gradient);
//   if (engine.begin_step({.hyper = {{3e-4, 0.9, 0.999, 1e-8, 0.1, 0, 0}}}, stream)) { ... }
//   engine.finish_step(stream);   // later work on `stream` sees the new weights; nothing was
//   synchronised
#ifndef OUTBOARD_ENGINE_H_
#define OUTBOARD_ENGINE_H_

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "outboard/device.h"
#include "outboard/options.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "outboard/stats.h"
#include "outboard/trace.h"
#include "outboard/types.h"

namespace outboard {

/// Where a weight and its gradients lie.
enum class Memory : uint8_t { kDevice, kHost };

/// One parameter as the caller registers it. The weight's memory belongs to the caller and must
/// outlive the engine or be replaced through set_weight().
struct ParameterSpec {
  std::string name;  ///< for messages
  void* weight = nullptr;
  Memory memory = Memory::kDevice;
  DType type = DType::kF32;
  size_t elements = 0;
  Placement placement = Placement::kHost;
  std::optional<RuleId>
      rule;  ///< none: the caller computes the update between begin_step and finish_step
  MasterFormat master_format = MasterFormat::kWeight;
  std::array<StateFormat, kMaxStates> formats = {};
  /// Of the parameter as a matrix in memory order, for a rule that keeps row and column means
  /// (their formats are fp32); others do not look at it.
  size_t rows = 0;
  std::vector<double> hyper =
      {};  ///< in the rule's catalogue order; decides which states exist at first
  uint64_t random_id =
      0;  ///< stable id for stochastic rounding; the default is the registration index
  bool has_random_id = false;
};

/// Values that state `i` of the parameter holds.
[[nodiscard]] inline size_t state_elements(const ParameterSpec& spec, size_t i) {
  if (!spec.rule || i >= rule_info(*spec.rule).states.size()) return spec.elements;
  return state_elements(rule_info(*spec.rule).states[i], spec.elements, spec.rows);
}

/// A contiguous gradient of a parameter's own type. `owner` is kept until the gradient was read; of
/// a resident parameter, until the work that reads it is enqueued on the step's stream (memory that
/// is reused in that stream's order is safe, as with torch's allocator).
struct GradientSource {
  const void* data = nullptr;
  std::shared_ptr<void> owner;
  bool is_revision = false;  ///< replaces what was taken before: no further backward gave it
  bool is_last = true;       ///< as far as the caller knows, no backward of this step follows: only
                             ///< then may its update begin before the step
};

/// Where a parameter is to be from the next step on.
struct PlacementChange {
  size_t parameter = 0;
  Placement placement = Placement::kHost;
};

/// A device gradient that gradient_ready() took from this place.
struct SentGradient {
  size_t parameter = 0;
  const void* data = nullptr;
};

/// What one step is made with. Hyper-parameters may differ at every step.
struct StepRequest {
  std::vector<std::vector<double>> hyper = {};  ///< per group, in the rule's catalogue order
  std::vector<uint32_t> group_of = {};          ///< per parameter; empty: all in group 0
  double max_gradient_norm = 0;                 ///< 0: off
  const float* loss_scale =
      nullptr;  ///< device (or host) fp32: gradients are divided by it; null: 1
  const float* found_inf =
      nullptr;  ///< device (or host) fp32: not 0 skips the step; null: not looked at
  Memory scalars_memory = Memory::kDevice;  ///< where the two above lie
};

/// Where a step that can be captured in a CUDA graph finds its numbers when it runs: in device
/// memory, which stays where it is while the graph may be replayed.
struct DeviceNumbers {
  std::vector<const double*> hyper = {};  ///< per group, in the rule's catalogue order
  std::vector<int64_t*> steps = {};       ///< per parameter: updates so far
};

/// What an engine holds of one parameter. Pointers are live and owned by the engine (weight: by the
/// caller); read or write them only after synchronize().
struct ParameterView {
  const ParameterSpec* spec = nullptr;
  void* host_weight = nullptr;  ///< the host image (placement kHost), else null
  void* master = nullptr;       ///< as spec->master_format says
  std::array<StateArray, kMaxStates> states = {};
  Memory state_memory = Memory::kHost;
  int64_t step = 0;                ///< updates so far
  const void* gradient = nullptr;  ///< during a step: where the update reads the gradient
  DType gradient_type = DType::kF32;
};

/// Owns master weights and optimizer state, and updates them. One thread calls it, except
/// gradient_ready(), which any thread may call. A driver thread of its own and the compute arena do
/// the work.
class Engine {
 public:
  /// Gives zero-filled device memory for resident state; the default is Device::allocate.
  using Allocator = std::function<std::shared_ptr<void>(size_t bytes)>;

  /// `device` may be null when every parameter is in host memory.
  Engine(const EngineOptions& options, std::shared_ptr<Device> device, Allocator allocator = {});
  /// Waits for the driver and for every copy. Resident updates may still be running on the caller's
  /// stream: device memory goes back through its deleter, which is ordered behind them (torch's
  /// allocator) or synchronises (cudaFree).
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Registers parameters, allocates their host and device memory and reads their weights (blocks
  /// until read). Returns the index of the first. Throws Error(kValue) for bad hyper-parameters or
  /// types, Error(kMemory) when memory cannot be had; then nothing was registered.
  size_t add_parameters(std::vector<ParameterSpec> specs, ComputeStream stream);

  /// Takes a gradient that `stream` has produced: enqueues its segment sums and its copy to the
  /// host, never blocks on the device. With offload_gradients a second gradient before the next
  /// step is added, without it replaces the first. For resident and host-memory parameters only the
  /// pointer is kept, until the step. If it throws while copying, the parameter has no gradient and
  /// nothing of it is under way.
  void gradient_ready(size_t parameter, GradientSource gradient, ComputeStream stream);
  /// Whether the engine alone uses this parameter's gradient from now on: it is on its way to the
  /// host, or being updated with for good. Else the caller keeps it until the step.
  [[nodiscard]] bool owns_gradient(size_t parameter) const;
  /// Drops what gradient_ready() gave for this parameter (all: for every parameter) since the last
  /// step. An update that was made for good in backward stays, and counts as one of its steps.
  void forget_gradient(size_t parameter);
  void forget_gradients();
  [[nodiscard]] bool has_gradient(size_t parameter) const;
  /// Parameters whose gradient no longer has the segment sums with which it was sent: somebody
  /// wrote to it since. Blocks until `stream` has got here. A change of signs alone is not seen.
  [[nodiscard]] std::vector<size_t> changed_gradients(std::span<const SentGradient> sent,
                                                      ComputeStream stream);

  /// Starts a step of all parameters that have a gradient: returns once it is decided whether the
  /// step is taken (false: it is skipped, nothing changes), while the driver updates and returns
  /// weights. `stream` is the stream of backward. Throws Error(kValue) before anything changed, or
  /// the driver's error. Follow it with finish_step() in both cases.
  bool begin_step(const StepRequest& request, ComputeStream stream);
  /// At kAtStep returns when the last weight copy is enqueued, and makes `stream` wait for it. In
  /// the other schedules returns at once, unless weights are in host memory or without a rule; who
  /// reads a weight then calls wait_weights(). Does not synchronise the device. Rethrows what the
  /// lanes threw; whether the engine is usable then is is_usable().
  void finish_step(ComputeStream stream);

  /// begin_step() and finish_step() in one, for parameters that are all resident: enqueues kernels
  /// that count up `numbers.steps` and read `numbers.hyper`, and nothing else; no thread, event or
  /// memory takes part. So it may be captured in a CUDA graph, which the engine must outlive. Of
  /// `request` the hyper-parameters only say which states exist, and there is no norm and no scale.
  /// Afterwards view().step is behind: load_step() puts it right. Throws Error(kValue) for requests
  /// and parameters that this is not for, Error(kState) where a capture would have to allocate.
  void enqueue_step(const StepRequest& request, const DeviceNumbers& numbers, ComputeStream stream);
  /// Whether what `stream` is given becomes part of a CUDA graph instead of running.
  [[nodiscard]] bool is_capturing(ComputeStream stream) const;

  /// Makes `stream` wait until the weights of `parameters` are current; blocks until the copies
  /// that it has to wait for are enqueued. From any thread. Rethrows what the lanes threw.
  void wait_weights(std::span<const size_t> parameters, ComputeStream stream);
  /// False: every weight is current, on every stream. Cheap.
  [[nodiscard]] bool is_updating() const;
  /// From the next step on, those come first that are named first; others keep their order behind.
  void set_use_order(std::span<const size_t> parameters);
  /// What the coming step will be made with, said before its backward; the step's own request
  /// decides, and what differs only costs time. At kInBackward updates then start as gradients
  /// appear. Throws as begin_step() for a request that cannot be.
  void announce_step(const StepRequest& request, ComputeStream stream);
  /// From the next step on.
  void set_schedule(Schedule schedule);

  /// Parameters that the step under way updates.
  [[nodiscard]] std::vector<size_t> active_parameters() const;
  /// Without a rule: blocks until the gradient of `parameter` is on the host; then view().gradient
  /// may be read.
  void wait_gradient(size_t parameter);
  /// The factor by which gradients of the step under way are multiplied (clipping / loss scale).
  [[nodiscard]] double gradient_scale() const;
  /// Without a rule: the host image was rewritten by the caller; enqueues its copy to the device.
  void return_weight(size_t parameter);

  /// The norm of all gradients taken so far, divided by the loss scale. Blocks until they were
  /// read.
  double gradient_norm(const StepRequest& request, ComputeStream stream);

  /// Reads the weights of `parameters` from the device again (blocks). A split master that
  /// load_step() announced is kept.
  void reload_weights(std::span<const size_t> parameters, ComputeStream stream);
  /// The weight moved to `weight` (same type and length).
  void set_weight(size_t parameter, void* weight);
  /// Sets the update count after the caller wrote a parameter's states (and master, if
  /// `has_master`).
  void load_step(size_t parameter, int64_t step, bool has_master);
  /// Makes the state arrays exist that `hyper` asks for. Throws Error(kMemory).
  void ensure_states(size_t parameter, std::span<const double> hyper);
  /// Gives a parameter's states other formats; those that exist hold zeros then, so read them
  /// first. Blocks until updates on the host are done. Host memory is kept for the new arrays and
  /// for later formats of the same parameter; device memory goes back. Throws Error(kMemory), then
  /// nothing was changed.
  void set_formats(size_t parameter, const std::array<StateFormat, kMaxStates>& formats);

  /// Moves parameters between kHost and kStreamed, after a step and before the next gradient.
  /// Weights, masters, states and all later steps have the bits that they would have had. Blocks
  /// until nothing is under way. Masters and states stay where they are, and are registered with
  /// the device for kStreamed; the first gradients of a moved parameter start no update in
  /// backward. Host memory that is not needed any more is kept for the same parameter
  /// (MemoryStats::host_spare), device memory goes back. Throws Error(kValue) for parameters
  /// without a rule, in host memory or resident, Error(kState) when a gradient was taken,
  /// Error(kMemory); then nothing has moved.
  void set_placements(std::span<const PlacementChange> changes, ComputeStream stream);

  /// Blocks until the driver is idle and every copy is done.
  void synchronize();
  [[nodiscard]] size_t parameter_count() const;
  [[nodiscard]] ParameterView view(size_t parameter) const;
  [[nodiscard]] MemoryStats memory() const;
  /// Waits for the device to finish the last step's copies if it has not.
  [[nodiscard]] StepStats stats() const;
  /// Records what runs when, until stop_trace(); see offload/trace.h for what a span means. Both
  /// wait for the device.
  void start_trace(ComputeStream stream);
  [[nodiscard]] std::vector<TraceSpan> stop_trace();
  /// New one-time warnings since the last call.
  [[nodiscard]] std::vector<std::string> take_warnings();
  /// False after a failure in the middle of an update; `unusable_reason` says which.
  [[nodiscard]] bool is_usable() const;
  [[nodiscard]] const EngineOptions& options() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace outboard

#endif  // OUTBOARD_ENGINE_H_
