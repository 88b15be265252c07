// Stage 3: updated weights back to the device. Enqueues copies; what waits for them is decided by
// the pipeline.
#ifndef OUTBOARD_OFFLOAD_WEIGHT_RETURN_H_
#define OUTBOARD_OFFLOAD_WEIGHT_RETURN_H_

#include <memory>

#include "offload/host_update.h"
#include "outboard/device.h"

namespace outboard {

/// Used by the thread of the host lane only.
class WeightReturn {
 public:
  /// `device` may be null when no parameter is in device memory; then nothing is ever copied.
  explicit WeightReturn(Device* device) {
    if (device != nullptr) up_ = device->make_copy_queue();
  }

  /// Copies from now on start after `weight_is_free`.
  void begin(const EventPtr& weight_is_free);
  /// Enqueues the copies of these pieces; the event behind them, null without a device. Does not
  /// block.
  EventPtr send(const UpdatedWeight& updated);
  /// The point after every copy sent so far; null without a device.
  [[nodiscard]] EventPtr finish();

  [[nodiscard]] CopyQueue* queue() { return up_.get(); }

 private:
  std::unique_ptr<CopyQueue> up_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_WEIGHT_RETURN_H_
