// Stage 1: gradients from the device to the host. Enqueues and never blocks on the device;
// arithmetic happens elsewhere.
#ifndef OUTBOARD_OFFLOAD_GRADIENT_INTAKE_H_
#define OUTBOARD_OFFLOAD_GRADIENT_INTAKE_H_

#include <functional>
#include <memory>
#include <vector>

#include "offload/memory/staging_ring.h"
#include "offload/parameter.h"
#include "outboard/device.h"

namespace outboard {

/// Proof that a piece of a gradient is on its way to the host; only GradientIntake makes one. Stage
/// 2 accepts nothing else.
class GradientOnHost {
 public:
  /// Blocks until the copy is done.
  void wait() const {
    if (arrived_ != nullptr) arrived_->synchronize();
  }

 private:
  friend class GradientIntake;
  explicit GradientOnHost(EventPtr arrived) : arrived_(std::move(arrived)) {}
  EventPtr arrived_;  // null: the gradient was in host memory from the start
};

/// A further micro-batch's gradient, in staging slots, to be added on the host.
struct GradientInSlot {
  Parameter* parameter;
  size_t first;
  size_t last;
  GradientOnHost gradient;
  StagingRing::Slot slot;
};

/// Used under the engine's lock, from any thread.
class GradientIntake {
 public:
  /// `device` may be null when no parameter is in device memory. `chunk_elements` is the plan's.
  GradientIntake(std::shared_ptr<Device> device, size_t chunk_elements);

  /// Enqueues the segment sums of a resident parameter's gradient, which stays where it is.
  void measure(const Parameter& parameter, ComputeStream stream);

  /// Copies the gradient into the parameter's store, replacing what was there. Returns the event
  /// after which the gradient's device memory is no longer read.
  [[nodiscard]] EventPtr store(Parameter& parameter, const void* gradient, ComputeStream stream);

  /// Copies the gradient into slots of `ring`, for a parameter whose store holds an earlier
  /// micro-batch, and hands each slot to `add` at once. Blocks while every slot is in flight.
  void stage(Parameter& parameter, const void* gradient, ComputeStream stream, StagingRing& ring,
             const std::function<void(GradientInSlot)>& add);

  /// The piece of the gradient that starts at element `first` (a multiple of the plan's
  /// chunk_elements).
  [[nodiscard]] GradientOnHost piece(const Parameter& parameter, size_t first) const;
  /// All of them.
  [[nodiscard]] std::vector<GradientOnHost> pieces(const Parameter& parameter) const;

  /// Segment sums and single values on the device, and where on the host they go.
  struct Value {
    float* host;
    const float* device;
    size_t count;
  };
  /// Writes them down, after everything that `stream` was given. Returns the event after which they
  /// may be read. Not by a copy queue: what they are waited for decides the step, and a copy engine
  /// that has state to move may serve them last.
  [[nodiscard]] EventPtr read_values(const std::vector<Value>& values, ComputeStream stream);
  /// Behind the last values that were to be read, even if that failed half-way; null: none were.
  [[nodiscard]] const EventPtr& last_read() const { return last_read_; }

  [[nodiscard]] CopyQueue* queue() { return down_.get(); }

 private:
  std::shared_ptr<Device> device_;
  std::unique_ptr<CopyQueue> down_;
  EventPtr last_read_;
  size_t chunk_elements_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_GRADIENT_INTAKE_H_
