// Wires the three stages: the only file that knows all of them. Decides about a step (norm, skip,
// factor) and lets the driver carry it out.
#ifndef OUTBOARD_OFFLOAD_PIPELINE_H_
#define OUTBOARD_OFFLOAD_PIPELINE_H_

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cpu_kernels/parallel.h"
#include "offload/chunk_plan.h"
#include "offload/driver.h"
#include "offload/gradient_intake.h"
#include "offload/host_update.h"
#include "offload/parameter.h"
#include "offload/schedule.h"
#include "offload/state_store.h"
#include "offload/step_decision.h"
#include "offload/weight_return.h"

namespace outboard {

/// The flow of one optimizer. take() may be called from any thread, the rest from the caller's
/// thread.
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
  void forget(Parameter& parameter);
  void forget_all();
  [[nodiscard]] bool has_gradient(size_t parameter) const;

  bool begin_step(const StepRequest& request, ComputeStream stream);
  void finish_step(ComputeStream stream);
  double gradient_norm(const StepRequest& request, ComputeStream stream);

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

 private:
  /// Enqueues the segment sums of resident gradients, which nobody needs unless the norm is asked
  /// for.
  void measure_resident(ComputeStream stream);
  /// Reads sums, loss scale and found_inf to the host; the event after which they are there (null:
  /// they are).
  [[nodiscard]] EventPtr read(const StepRequest& request, const EventPtr& backward_done);
  /// Runs on the driver, behind every accumulation.
  [[nodiscard]] StepDecision decide(const StepRequest& request, const EventPtr& is_read,
                                    UpdateStart start);
  [[nodiscard]] RuleScalars scalars(const Parameter& parameter, const StepRequest& request) const;
  void check(const StepRequest& request) const;
  void take_in(Parameter& parameter, const GradientSource& gradient, ComputeStream stream);
  void add_micro_batch(Parameter& parameter, const GradientSource& gradient, ComputeStream stream);
  /// Drops a gradient whose intake failed half way, when nothing of it is under way any more. Under
  /// intake_mutex_, as clear_gradient().
  void abandon(Parameter& parameter);
  static void clear_gradient(Parameter& parameter);
  void start_updates(const StepRequest& request, ComputeStream stream);
  void update_host(const StepRequest& request);
  /// Forms the scalars of every parameter that begins in `chunk`; its later pieces find them there.
  void prepare(const Chunk& chunk, const StepRequest& request);
  void update_resident(const StepRequest& request, ComputeStream stream);
  void end_step();
  /// Returns when neither the driver nor a copy is under way.
  void settle();
  /// Ends a step that failed on the caller's thread: half taken, if it was taken at all.
  void break_off(const std::exception& error);
  void mark_unusable(const std::exception& error);
  void check_usable() const;
  void drain();
  void rethrow_failure();

  EngineOptions options_;
  std::shared_ptr<Device> device_;
  StateStore& store_;
  size_t chunk_elements_;
  cpu::Arena arena_;

  mutable std::mutex
      intake_mutex_;  // the intake and the gradient fields of parameters, until a step begins
  GradientIntake intake_;
  std::unique_ptr<StagingRing> ring_;
  HostUpdate update_;
  WeightReturn weight_return_;

  std::vector<ParameterPtr> parameters_;
  std::vector<SegmentSums> sums_;
  std::vector<Chunk> chunks_;
  std::vector<size_t> active_;
  StepDecision decision_;
  float* values_;                     // pinned: loss scale, found_inf
  std::shared_ptr<void> check_sums_;  // of changed_gradients(): on the device, and copied
  float* copied_check_sums_ = nullptr;
  size_t check_segments_ = 0;
  bool is_in_step_ = false;
  StepStats stats_;
  std::unique_ptr<CopyQueue>
      clock_;  // an idle queue: its events tell the device's time of a host moment
  EventPtr backward_done_;
  EventPtr updates_done_;
  EventPtr weights_back_;
  mutable std::mutex reason_mutex_;
  std::string unusable_reason_;

  // Last: their threads stop before anything they use goes.
  Driver driver_;
  Driver keeper_;  // holds gradients until their copies are done, so that the driver need not wait
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_PIPELINE_H_
