// Wires the stages and lanes: the only file that knows all of them. Decides about a step (norm,
// skip, factor), says which pieces may be updated, and knows who waits for them.
#ifndef OUTBOARD_OFFLOAD_PIPELINE_H_
#define OUTBOARD_OFFLOAD_PIPELINE_H_

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cpu_kernels/parallel.h"
#include "offload/driver.h"
#include "offload/gradient_intake.h"
#include "offload/host_lane.h"
#include "offload/host_update.h"
#include "offload/parameter.h"
#include "offload/progress.h"
#include "offload/schedule.h"
#include "offload/state_store.h"
#include "offload/step_decision.h"
#include "offload/stream_lane.h"
#include "offload/trace.h"

namespace outboard {

/// The group of hyper-parameters that a parameter is updated with.
[[nodiscard]] inline size_t group_of(const StepRequest& request, size_t parameter) {
  return request.group_of.empty() ? 0 : request.group_of[parameter];
}

/// The flow of one optimizer. take() and wait_weights() may be called from any thread, the rest
/// from the caller's thread. What happens to gradients is in pipeline_gradients.cc, to a step in
/// pipeline_step.cc, what it hands to the lanes in pipeline_updates.cc, what comes before it in
/// pipeline_early.cc, and between two steps in pipeline_moves.cc.
class Pipeline {
 public:
  Pipeline(const EngineOptions& options, std::shared_ptr<Device> device, StateStore& store);
  ~Pipeline();

  /// Adds parameters (their memory exists) to the plan and reads their weights. Blocks.
  void add(std::vector<ParameterPtr> batch, SegmentSums sums, ComputeStream stream);

  [[nodiscard]] const std::vector<ParameterPtr>& parameters() const { return parameters_; }
  /// Throws Error(kValue) if there is none.
  [[nodiscard]] Parameter& parameter(size_t index);

  void take(size_t index, const GradientSource& gradient, ComputeStream stream);
  [[nodiscard]] bool owns_gradient(size_t index) const;
  void forget(Parameter& parameter);
  void forget_all();
  [[nodiscard]] bool has_gradient(size_t parameter) const;

  void announce(const StepRequest& request, ComputeStream stream);
  bool begin_step(const StepRequest& request, ComputeStream stream);
  void finish_step(ComputeStream stream);
  void enqueue_step(const StepRequest& request, const DeviceNumbers& numbers, ComputeStream stream);
  double gradient_norm(const StepRequest& request, ComputeStream stream);

  void wait_weights(std::span<const size_t> parameters, ComputeStream stream);
  [[nodiscard]] bool is_updating() const { return progress_.is_busy(); }
  void set_use_order(std::span<const size_t> parameters);
  void set_schedule(Schedule schedule);
  void set_placements(std::span<const PlacementChange> changes, ComputeStream stream);
  void set_formats(Parameter& parameter, const std::array<StateFormat, kMaxStates>& formats);

  [[nodiscard]] std::vector<size_t> changed_gradients(std::span<const SentGradient> sent,
                                                      ComputeStream stream);
  void wait_gradient(Parameter& parameter);
  void return_weight(Parameter& parameter);
  void reload_weights(std::span<Parameter* const> parameters, ComputeStream stream);
  void synchronize();

  [[nodiscard]] std::vector<size_t> active_parameters() const;
  [[nodiscard]] double gradient_scale() const { return decision_.gradient_scale; }
  [[nodiscard]] StepStats stats();
  [[nodiscard]] bool is_usable() const;
  [[nodiscard]] Trace& trace() { return trace_; }

 private:
  /// What the coming step was announced with.
  struct Announced {
    StepRequest request;
    double gradient_scale = 1;
    EarlyStart start = EarlyStart::kNot;
  };
  /// The caller's stream between two points in which it did nothing but wait for weights.
  struct Wait {
    EventPtr begin;
    EventPtr end;
  };

  // Gradients.
  void take_in(Parameter& parameter, const GradientSource& gradient, ComputeStream stream);
  void keep_here(Parameter& parameter, const GradientSource& gradient, ComputeStream stream);
  void add_micro_batch(Parameter& parameter, const GradientSource& gradient, ComputeStream stream);
  void trace_intake(const Parameter& parameter, const EventPtr& begin, const EventPtr& end);
  /// Drops a gradient whose intake failed half way, when nothing of it is under way any more. Under
  /// intake_mutex_, as clear_gradient().
  void abandon(Parameter& parameter);
  void clear_gradient(Parameter& parameter);
  /// Enqueues the segment sums of resident gradients, which nobody needs unless the norm is asked
  /// for.
  void measure_resident(ComputeStream stream);
  /// Reads sums, loss scale and found_inf to the host; the event after which they are there (null:
  /// they are).
  [[nodiscard]] EventPtr read(const StepRequest& request, ComputeStream stream);
  /// All segment sums, as values to be read.
  [[nodiscard]] std::vector<GradientIntake::Value> sums_to_read() const;
  void note_active();

  // Before a step. Under intake_mutex_.
  void start_early(Parameter& parameter, ComputeStream stream);
  [[nodiscard]] bool may_start_early(const Parameter& parameter) const;
  void drop_early(Parameter& parameter);
  [[nodiscard]] bool accepts_early(const Parameter& parameter, const StepRequest& request) const;
  void accept_early(Parameter& parameter, const EventPtr& weight_is_free);
  void check_finals(const StepRequest& request) const;

  // A step.
  void complete_last_step();
  void check(const StepRequest& request) const;
  /// Runs on the driver, behind every accumulation.
  [[nodiscard]] StepDecision decide(const StepRequest& request, const EventPtr& is_read,
                                    UpdateStart start);
  void note_decision(const StepRequest& request, UpdateStart start);
  [[nodiscard]] RuleScalars scalars(const Parameter& parameter, const StepRequest& request,
                                    int64_t step, double gradient_scale) const;
  void start_updates(const StepRequest& request, UpdateStart start, ComputeStream stream);
  void push_host(Parameter& parameter, int64_t step, bool has_arrived,
                 const EventPtr& weight_is_free);
  [[nodiscard]] std::vector<StreamWorkPtr> stream_works(Parameter& parameter, int64_t step,
                                                        const EventPtr& weight_is_free);
  void push_streamed(Parameter& parameter, const EventPtr& weight_is_free);
  [[nodiscard]] size_t stream_piece_elements(const Parameter& parameter) const;
  [[nodiscard]] static ResidentUpdate resident_update(const Parameter& parameter,
                                                      const RuleScalars& scalars, int64_t step);
  void update_resident(const StepRequest& request, ComputeStream stream);
  void check_enqueued(const StepRequest& request, const DeviceNumbers& numbers,
                      bool is_captured) const;
  [[nodiscard]] std::vector<size_t> in_order_of_coming() const;
  [[nodiscard]] EventPtr poison_weights(ComputeStream stream);
  [[nodiscard]] bool is_waited_for_at_step() const;
  /// Seconds of updates that the last step did not wait for.
  void note_late_times();
  void wait_for_everything(ComputeStream stream);
  /// Until somebody knows better: in the order in which backward produces gradients.
  void forget_use_order();
  /// Makes the ring's slots as large as the largest piece, whose states may have become more.
  void reserve_slots(ComputeStream stream);
  void grow_slots(size_t bytes, ComputeStream stream);
  [[nodiscard]] size_t slot_bytes(const Parameter& parameter) const;
  void ensure_stream_lane();
  /// No piece of the parameter has been updated where it is now.
  void forget_returns(Parameter& parameter) const;
  void end_step();

  // Between two steps.
  void check_change(const PlacementChange& change);
  /// Gives parameters that are to be updated on the host their images. Blocks.
  void bring_images(std::span<Parameter* const> parameters, ComputeStream stream);
  void settle_at(Parameter& parameter, Placement placement) const;

  // Failures.
  /// Returns when neither a thread nor a copy is under way.
  void settle();
  void drain();
  /// Ends a step that failed on the caller's thread: half taken, if it was taken at all.
  void break_off(const std::exception& error);
  void mark_unusable(const std::exception& error);
  void check_usable() const;
  /// Of gradients on their way; blocks until they have arrived.
  void rethrow_gradient_failure();
  /// Of anything at all; blocks until all of it is enqueued.
  void rethrow_failure();

  EngineOptions options_;
  std::shared_ptr<Device> device_;
  StateStore& store_;
  Schedule schedule_;  // of the step to come
  size_t chunk_elements_;
  size_t stream_elements_;
  cpu::Arena arena_;
  Trace trace_;
  Progress progress_;

  mutable std::mutex
      intake_mutex_;  // the intake and the gradient fields of parameters, until a step begins
  GradientIntake intake_;
  std::unique_ptr<StagingRing> ring_;
  HostUpdate adder_;  // the driver's own

  std::vector<ParameterPtr> parameters_;
  std::vector<SegmentSums> sums_;
  std::vector<size_t> active_;
  uint64_t taken_ = 0;  // gradients, ever
  std::optional<Announced> announced_;
  Acceptance acceptance_;
  double last_loss_scale_ = 1;
  bool has_loss_scale_ = false;
  StepDecision decision_;
  float* values_;                     // pinned: loss scale, found_inf
  std::shared_ptr<void> check_sums_;  // of changed_gradients(): on the device, and copied
  float* copied_check_sums_ = nullptr;
  size_t check_segments_ = 0;
  bool is_in_step_ = false;
  bool has_early_ = false;
  bool has_late_times_ = false;
  StepStats stats_;
  std::unique_ptr<CopyQueue>
      clock_;  // an idle queue: its events tell the device's time of a host moment
  EventPtr backward_done_;
  EventPtr updates_done_;
  EventPtr weights_back_;  // null if nobody waited for all of them at once
  std::mutex waits_mutex_;
  std::vector<Wait> waits_;       // since the last step began
  std::vector<Wait> last_waits_;  // between the two steps before
  mutable std::mutex reason_mutex_;
  std::string unusable_reason_;

  // Last: their threads stop before anything they use goes; the others push to the lanes.
  HostLane host_;
  std::unique_ptr<StreamLane> stream_;  // made with the first streamed parameter
  Driver driver_;                       // adds micro-batches and decides
  Driver keeper_;                       // holds gradients until their copies are done
  Driver releaser_;                     // lets pieces be updated as their gradients arrive
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_PIPELINE_H_
