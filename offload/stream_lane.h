// The way of a piece through the device: its master and states come up into a slot of a bounded
// ring, a kernel updates them together with the weight, and they go back down. The gradient stays
// where backward left it. Owns the thread that enqueues; decides nothing about steps.
#ifndef OUTBOARD_OFFLOAD_STREAM_LANE_H_
#define OUTBOARD_OFFLOAD_STREAM_LANE_H_

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "offload/driver.h"
#include "offload/parameter.h"
#include "offload/progress.h"
#include "offload/trace.h"
#include "outboard/device.h"
#include "outboard/engine.h"

namespace outboard {

/// One piece of a streamed parameter's update. Filled by the pipeline, then the lane's.
struct StreamWork {
  Parameter* parameter = nullptr;
  size_t index = 0;        ///< which piece of its parameter
  ResidentUpdate update;   ///< of the piece; the lane fills in master and states
  StateCopy from;          ///< whole arrays on the host that are read
  StateCopy to;            ///< whole arrays on the host that are written; may be the same
  void* shadow = nullptr;  ///< device memory of this piece for the new weight; null: in place
  EventPtr gradient_ready;
  EventPtr weight_is_free;  ///< after it, nobody reads the old weight
  std::shared_ptr<void> gradient_owner;

  enum class Phase { kWaiting, kStarted, kCancelled };
  Phase phase = Phase::kWaiting;  ///< under the lane's lock
  bool is_accepted = true;  ///< the weight is to be replaced; under the lane's lock. False: later,
                            ///< by accept(), or never
  bool is_shadow_filled = false;  ///< the old weight is there already, and not in its own place
  bool is_finished = false;       ///< the lane's own: the new weight is on its way
};
using StreamWorkPtr = std::shared_ptr<StreamWork>;

/// Any thread may push, accept and cancel.
class StreamLane {
 public:
  StreamLane(std::shared_ptr<Device> device, Progress& progress, Trace& trace, size_t most_slots,
             Driver::FailureHandler on_failure);

  /// Makes slots that hold `bytes` each, in the place of those there are; `allocate` gives device
  /// memory that is ready when `stream` gets here. Call drain() first. The bytes of the whole ring.
  size_t reserve(size_t bytes, const Engine::Allocator& allocate, ComputeStream stream);

  /// Gives the slots' memory back. Call flush(true) and wait for it first.
  void release();

  /// Kernels enqueued from now on start after `event`.
  void after(const EventPtr& event);

  /// progress.begin() counted every piece that is accepted.
  void push(const StreamWorkPtr& work);
  /// Work that was pushed unaccepted becomes what the weights are: shadows go to the weights after
  /// `weight_is_free`. progress.begin() counted it.
  void accept(const std::vector<StreamWorkPtr>& works, const EventPtr& weight_is_free);
  /// Work that has not begun will not begin; what has, leaves nothing but its second copies.
  void cancel(const std::vector<StreamWorkPtr>& works);

  /// After everything pushed so far is enqueued: the event behind the last weight, and with
  /// `and_state` behind the last state as well.
  [[nodiscard]] EventPtr flush(bool and_state);
  void drain() { thread_.drain(); }
  void rethrow_failure() { thread_.rethrow_failure(); }

  /// What reserve() made them last.
  [[nodiscard]] size_t slot_bytes() const { return slot_bytes_; }
  /// Bytes that a slot needs for a piece of `elements` elements of `parameter`.
  [[nodiscard]] static size_t slot_bytes(const Parameter& parameter, size_t elements);

 private:
  struct Slot {
    std::byte* memory = nullptr;
    EventPtr is_free;  // behind the last copy out of it
    std::shared_ptr<void> gradient_owner;
  };
  /// One array of a piece: where on the host it is read and written, where in the slot it lies.
  struct Part {
    std::byte* device;
    const std::byte* from;
    std::byte* to;
    size_t bytes;
  };

  void run_next();
  [[nodiscard]] StreamWorkPtr take();
  void sort_arrived();
  void replace_accepted();
  Slot& next_slot();
  void enqueue(StreamWork& work);
  [[nodiscard]] static std::vector<Part> place(StreamWork& work, std::byte* memory);
  EventPtr copy_in(const StreamWork& work, const Slot& slot, const std::vector<Part>& parts);
  EventPtr run_kernel(StreamWork& work, const EventPtr& copied_in);
  EventPtr copy_out(const StreamWork& work, const EventPtr& updated,
                    const std::vector<Part>& parts);
  void replace_weight(StreamWork& work);
  void let_go_of_gradients(bool all);

  std::shared_ptr<Device> device_;
  Progress& progress_;
  Trace& trace_;
  size_t most_slots_;
  std::unique_ptr<CopyQueue> up_;
  std::unique_ptr<CopyQueue> down_;
  ComputeStream kernels_;
  std::shared_ptr<void> memory_;
  size_t slot_bytes_ = 0;
  std::vector<Slot> slots_;  // this and the next: the lane's thread's own
  size_t next_slot_ = 0;

  std::mutex mutex_;
  std::deque<StreamWorkPtr> coming_;  // in the order in which their gradients appear
  std::multimap<std::pair<size_t, size_t>, StreamWorkPtr> ready_;  // by rank, then piece
  std::vector<StreamWorkPtr> accepted_;  // begun before they were accepted
  Driver thread_;                        // last: it uses what is above
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_STREAM_LANE_H_
