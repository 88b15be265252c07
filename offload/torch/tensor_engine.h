// The engine in terms of tensors: hooks, versions, shapes, streams. Both faces, Python's and C++'s,
// are thin layers over this one class. No arithmetic on elements and no decision about order lives
// here.
#ifndef OUTBOARD_OFFLOAD_TORCH_TENSOR_ENGINE_H_
#define OUTBOARD_OFFLOAD_TORCH_TENSOR_ENGINE_H_

#include <ATen/core/Tensor.h>

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "offload/torch/capturable_numbers.h"
#include "offload/torch/packed_state.h"
#include "offload/torch/tensor_types.h"
#include "outboard/engine.h"

namespace outboard {

/// How a state format with blocks is shown: as fp32 copies on the host, or exactly (PackedState).
enum class StateLayout { kDecoded, kExact };

/// How parameters of one group are added.
struct TensorGroup {
  std::vector<at::Tensor> tensors =
      {};  ///< leaves, dense without overlap, all CUDA tensors on one device
  std::vector<std::string> names = {};     ///< for messages; one each
  std::vector<Placement> placements = {};  ///< one each; CPU tensors are updated in place
  /// Catalogue names with the same hyper-parameters, one each; empty: the caller computes the
  /// update. A rule that keeps row and column means sees a tensor as size(0) rows in memory.
  std::vector<std::string> rules = {};
  std::vector<double> hyper = {};              ///< in catalogue order
  std::vector<FormatWish> state_formats = {};  ///< one each
  size_t min_quantized_elements = 0;  ///< below it, fp32 takes the place of formats with blocks
  std::string master = "auto";        ///< "auto", "split", "split8", "fp32", "none" (rounds bf16
                                      ///< stochastically)
};

/// Holds the parameters' tensors and watches their gradients. CUDA parameters are offloaded or
/// resident, CPU parameters are updated in place. Called by one thread; the hooks run on autograd's
/// threads.
class TensorEngine {
 public:
  /// `simulated`: CPU parameters are treated as if they lay on this kind of fake device.
  TensorEngine(const EngineOptions& options, std::optional<SimulatedDeviceOptions> simulated = {});
  /// Removes the hooks and waits for everything under way.
  ~TensorEngine();
  TensorEngine(const TensorEngine&) = delete;
  TensorEngine& operator=(const TensorEngine&) = delete;

  /// Registers the group's parameters; the index of the first. Throws Error before anything
  /// changed.
  size_t add_parameters(const TensorGroup& group);

  /// Sends every gradient that was not sent or was changed since, and starts the step (see
  /// Engine::begin_step). `grad_scale` and `found_inf` are fp32 tensors of one element. Empty
  /// `group_of`: one group.
  bool begin_step(std::vector<std::vector<double>> hyper, std::vector<uint32_t> group_of,
                  double max_gradient_norm, const at::Tensor& grad_scale,
                  const at::Tensor& found_inf);
  /// See Engine::finish_step; bumps the versions of the weights that changed.
  void finish_step();
  [[nodiscard]] std::vector<size_t> active_parameters() const;

  /// From now on steps can be captured in CUDA graphs, and are taken with enqueue_step(): every
  /// parameter is resident on the device, numbers lie there too, and there is neither a norm nor a
  /// loss scale. Call it before a first step. Throws Error(kValue) for other parameters, here or
  /// when they are added.
  void make_capturable();
  /// A step of what make_capturable() made, captured or not; see Engine::enqueue_step. Places that
  /// `tensors` name in `hyper` are not looked at.
  void enqueue_step(std::vector<std::vector<double>> hyper, std::vector<uint32_t> group_of,
                    std::span<const HyperTensor> tensors);
  /// Enqueues what replays need to know: hyper-parameters that changed since they were last sent,
  /// and weights that were written to. Not while a graph is captured.
  void update_hyper(std::vector<std::vector<double>> hyper, std::vector<uint32_t> group_of,
                    std::span<const HyperTensor> tensors);

  /// See Engine: what a forward and whoever reads weights call where the schedule is not kAtStep.
  /// `parameters` empty: all.
  void wait_weights(std::span<const size_t> parameters);
  [[nodiscard]] bool is_updating() const { return engine_ != nullptr && engine_->is_updating(); }
  void set_use_order(std::span<const size_t> parameters);
  void set_schedule(Schedule schedule);
  void announce_step(std::vector<std::vector<double>> hyper, std::vector<uint32_t> group_of,
                     double max_gradient_norm);
  void start_trace();
  [[nodiscard]] std::vector<TraceSpan> stop_trace();

  /// For parameters without a rule. The gradient is an fp32 copy, unscaled and clipped; blocks
  /// until it arrived. The weight is a live fp32 view of the master. Both have the parameter's
  /// shape and lie in host memory.
  [[nodiscard]] at::Tensor host_gradient(size_t parameter);
  [[nodiscard]] at::Tensor host_weight(size_t parameter);
  /// The factor in that gradient: clip factor / loss scale. For gradients read elsewhere.
  [[nodiscard]] double gradient_scale() const { return engine_ ? engine_->gradient_scale() : 1; }
  /// Rounds the host weight to the parameter's type and enqueues its copy to the device.
  void return_weight(size_t parameter);

  /// Norm of all pending gradients divided by the scale; blocks for them.
  double gradient_norm(const at::Tensor& grad_scale);
  void discard_gradients();
  /// While true, backwards without offload_gradients send nothing: they are not the last ones.
  void set_accumulating(bool is_accumulating) { is_accumulating_ = is_accumulating; }
  /// Every step has this many backwards: the same without saying it each time. 0: not known.
  void set_accumulation_steps(int backwards) { accumulation_steps_ = backwards; }
  void synchronize();
  /// Installs hooks on parameters that require gradients only now.
  void refresh_hooks();

  /// Live views on a parameter's state, empty before its first update; "step" is a copy, and so are
  /// decoded states. Call synchronize() first.
  [[nodiscard]] TensorMap state(size_t parameter, StateLayout layout = StateLayout::kDecoded);
  /// Checks every entry of every map, then copies all of them in, from any format into each state's
  /// own; the same format keeps its bits. Missing optional states and masters stay as they are.
  void load_states(const std::vector<size_t>& parameters, const std::vector<TensorMap>& states);
  /// Forgets a parameter's state: the next update is its first.
  void reset_state(size_t parameter);

  /// Gives parameters other state formats and converts what their states hold. Throws Error(kValue)
  /// before anything changed. After Error(kMemory), each parameter has either format, whole.
  void convert_states(const std::vector<size_t>& parameters, const std::vector<FormatWish>& formats,
                      size_t min_quantized_elements);
  /// The formats of a parameter's states: "fp32", or "sym8/128, root8/128".
  [[nodiscard]] std::string state_format(size_t parameter) const;

  /// Moves parameters between host and stream; see Engine::set_placements.
  void set_placements(const std::vector<PlacementChange>& changes);
  /// "host", "streamed", "resident" or "cpu".
  [[nodiscard]] std::string placement(size_t parameter) const;
  /// "weight", "split", "split8", "fp32" or "none".
  [[nodiscard]] std::string master_format(size_t parameter) const;
  [[nodiscard]] size_t parameter_count() const { return slots_.size(); }
  [[nodiscard]] MemoryStats memory() const;
  [[nodiscard]] StepStats stats() const;
  [[nodiscard]] std::vector<std::string> take_warnings();

 private:
  class Hook;
  /// What is known of one parameter's tensor.
  struct Slot {
    at::Tensor tensor;
    std::string name;
    std::shared_ptr<Hook> hook = {};
    void* weight = nullptr;         // where it lay when last looked at
    int64_t weight_version = -1;    // and its version then
    at::Tensor sent_gradient = {};  // the gradient that was sent last for the step to come
    int64_t sent_version = -1;
    bool is_streamed = false;
    int backwards = 0;  // since the last step
  };

  void start_engine(const TensorGroup& group);
  static void check_capturable(const ParameterSpec& spec, const at::Tensor& tensor);
  void start_capturable();
  void send_hyper(std::vector<std::vector<double>>& hyper, std::span<const HyperTensor> tensors);
  void fill_places(std::vector<std::vector<double>>& hyper, const std::vector<uint32_t>& group_of,
                   std::span<const HyperTensor> tensors) const;
  void check_same_states(const std::vector<std::vector<double>>& hyper,
                         const std::vector<uint32_t>& group_of) const;
  void note_steps();
  void set_step(size_t parameter, int64_t step, bool has_master);
  [[nodiscard]] ParameterSpec spec_of(const TensorGroup& group, size_t i) const;
  void on_gradient(size_t parameter);
  void send(size_t parameter, const at::Tensor& gradient, bool is_revision);
  [[nodiscard]] bool is_last_backward(Slot& slot) const;
  void send_pending(bool looks_at_values);
  [[nodiscard]] static at::Tensor same_order(const Slot& slot, const at::Tensor& gradient);
  void check_gradient(const Slot& slot, const at::Tensor& gradient) const;
  [[nodiscard]] bool has_changed(const Slot& slot) const;
  void notice_changed_weights();
  void rethrow_hook_failure();
  [[nodiscard]] bool is_offloaded(const Slot& slot) const;
  [[nodiscard]] ComputeStream stream() const;
  [[nodiscard]] at::Tensor view_of(size_t parameter, void* data, at::ScalarType type) const;
  /// Of a state without blocks: the parameter's shape, or as long as rows or columns are many.
  [[nodiscard]] at::Tensor state_view(size_t parameter, size_t i) const;
  [[nodiscard]] std::vector<int64_t> state_sizes(size_t parameter, size_t i) const;
  [[nodiscard]] at::Device state_device(size_t parameter) const;
  void check_state(size_t parameter, const TensorMap& state) const;
  void load_state(size_t parameter, const TensorMap& state);
  void write_master(size_t parameter, const at::Tensor& value);
  void write_states(size_t parameter, const TensorMap& state, int64_t step);
  void write_state(size_t parameter, size_t i, const at::Tensor& value, int64_t step);
  void write_state(size_t parameter, size_t i, const PackedState& packed, int64_t step);
  [[nodiscard]] at::Tensor bytes_of(size_t parameter, void* data, size_t bytes) const;

  EngineOptions options_;
  std::optional<SimulatedDeviceOptions> simulated_;
  std::optional<at::Device> device_;  // of the offloaded and resident parameters
  std::shared_ptr<Engine> engine_;    // views of state keep it alive
  std::vector<Slot> slots_;
  bool is_capturable_ = false;
  std::optional<CapturableNumbers> numbers_;     // with the first parameters, if capturable
  std::vector<std::vector<double>> last_hyper_;  // of capturable steps
  bool has_captured_ = false;                    // graphs hold addresses of states
  std::atomic<bool> is_accumulating_ = false;
  std::atomic<int> accumulation_steps_ = 0;
  int64_t resent_gradients_ = 0;
  mutable std::mutex hook_mutex_;
  std::exception_ptr hook_failure_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_TENSOR_ENGINE_H_
