// Which weights are on their way: how many pieces of each parameter still have to be enqueued, and
// the event after which its weight is current. Moves nothing itself.
#ifndef OUTBOARD_OFFLOAD_PROGRESS_H_
#define OUTBOARD_OFFLOAD_PROGRESS_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "offload/parameter.h"
#include "outboard/device.h"

namespace outboard {

/// Thread safe. The caller's thread announces work, the lanes report it, readers of weights wait.
class Progress {
 public:
  /// `pieces` more updates of `parameter` will be enqueued.
  void begin(Parameter& parameter, size_t pieces);
  /// One of them is: the weight is current after `event` (null: it is current now).
  void end(Parameter& parameter, EventPtr event);
  /// A lane failed and will report nothing more: nobody waits for it any longer.
  void fail();

  /// Blocks until no piece of the parameter has to be enqueued; the event after which the weight is
  /// current, or null if nobody needs to wait.
  [[nodiscard]] EventPtr wait(Parameter& parameter);
  /// Blocks until nothing at all has to be enqueued.
  void wait_all();

  /// False if every weight has arrived and was asked for since.
  [[nodiscard]] bool is_busy() const { return unsettled_.load(std::memory_order_relaxed) > 0; }
  [[nodiscard]] bool is_busy(const Parameter& parameter);

 private:
  void settle(Parameter& parameter);

  std::mutex mutex_;
  std::condition_variable has_ended_;
  size_t pieces_ = 0;
  bool has_failed_ = false;
  std::atomic<size_t> unsettled_ = 0;  // parameters whose weight may still be on its way
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_PROGRESS_H_
