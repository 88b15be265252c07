// What the runtime needs from a device: copies in order, events, sums of squares, the fused step,
// memory. CUDA implements it, and so does a delayed fake on host memory that runs the whole
// pipeline without a GPU.
#ifndef OUTBOARD_DEVICE_H_
#define OUTBOARD_DEVICE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "outboard/types.h"

namespace outboard {

/// A point in the work of one stream. Handles are shared: an event lives as long as somebody may
/// still wait for it.
class Event {
 public:
  virtual ~Event() = default;
  /// Blocks the calling thread until everything before the event has run. Throws Error(kDevice) if
  /// that work failed.
  virtual void synchronize() const = 0;
  [[nodiscard]] virtual bool is_done() const = 0;
};
using EventPtr = std::shared_ptr<const Event>;

/// The caller's own stream on which forward and backward run: a cudaStream_t, or a stream of the
/// fake device. Null is the device's default stream (on the fake: the calling thread itself).
using ComputeStream = void*;

/// One stream of copies, executed in order, asynchronous to the caller. Used by one thread at a
/// time.
class CopyQueue {
 public:
  virtual ~CopyQueue() = default;
  /// Later copies start only after `event`. Null is ignored. Does not block.
  virtual void wait(const EventPtr& event) = 0;
  /// Both ranges must stay valid until an event recorded after this call is done.
  virtual void copy_to_host(void* host, const void* device, size_t bytes) = 0;
  virtual void copy_to_device(void* device, const void* host, size_t bytes) = 0;
  /// The point after everything enqueued so far.
  [[nodiscard]] virtual EventPtr record() = 0;
};

/// One parameter, or a piece of one, whose state lies in device memory. Weight and gradient hold
/// `elements` elements, master and states are padded to whole tiles; pointers are to element 0.
struct ResidentUpdate {
  RuleId rule;
  RuleScalars scalars;
  uint32_t step = 0;
  uint32_t random_key_low = 0;
  uint32_t random_key_high = 0;
  size_t elements = 0;
  size_t element_offset = 0;  ///< of element 0 in its whole parameter; 0 for rules that look at the
                              ///< whole of it first
  size_t rows = 0;  ///< of the parameter as a matrix, for rules that keep row and column means
  const void* gradient = nullptr;
  void* weight = nullptr;
  /// Where the weight is read, if not in `weight`, which is only written then; no part of it.
  const void* old_weight = nullptr;
  void* master = nullptr;
  DType type = DType::kF32;
  MasterFormat master_format = MasterFormat::kWeight;
  std::array<void*, kMaxStates> codes = {};
  std::array<float*, kMaxStates> scales = {};
  std::array<StateFormat, kMaxStates> formats = {};
  /// Not null: `scalars` and `step` are not looked at. The update counts up `*device_step` and
  /// forms the scalars from that step and the hyper-parameters at `device_hyper`, in catalogue
  /// order, both in device memory, with a gradient scale of 1, when it runs. The parameter is
  /// whole.
  int64_t* device_step = nullptr;
  const double* device_hyper = nullptr;
};

/// One device. Thread safe unless a method says otherwise; every method may throw Error(kDevice).
class Device {
 public:
  virtual ~Device() = default;
  [[nodiscard]] virtual std::unique_ptr<CopyQueue> make_copy_queue() = 0;

  /// The point after everything that `stream` was given so far.
  [[nodiscard]] virtual EventPtr record(ComputeStream stream) = 0;
  /// Work that `stream` is given later starts only after `event`. Does not block (fake with a null
  /// stream: blocks).
  virtual void wait(ComputeStream stream, const EventPtr& event) = 0;
  /// Seconds on the device between two events that record() of a stream or queue gave and that are
  /// both done; 0 where the device cannot tell.
  [[nodiscard]] virtual double seconds_between(const Event& first, const Event& second) const = 0;

  /// Enqueues on `stream` the segment sums (see cpu_kernels/gradient_math.h) of a contiguous device
  /// gradient.
  virtual void sum_of_squares(ComputeStream stream, const void* gradient, DType type,
                              size_t elements, float* device_sums) = 0;
  /// Enqueues on `stream` the updates: one launch for all that share rule, formats, types and
  /// scalars. Of each stream, one thread at a time. Updates with numbers in device memory may be
  /// captured in a CUDA graph, of which the device must outlive the last replay.
  virtual void update_resident(ComputeStream stream, std::span<const ResidentUpdate> updates) = 0;

  /// Whether what `stream` is given becomes part of a CUDA graph instead of running.
  [[nodiscard]] virtual bool is_capturing(ComputeStream /*stream*/) const { return false; }

  /// A stream for kernels, beside the caller's own. Streams live as long as the device.
  [[nodiscard]] virtual ComputeStream make_stream() = 0;
  /// Enqueues on `stream` a copy between two ranges of device memory.
  virtual void copy_on_device(ComputeStream stream, void* target, const void* source,
                              size_t bytes) = 0;
  /// Enqueues on `stream` a copy of floats to host memory that leaves the copy engines alone: they
  /// may serve another queue as long as that has copies, and what the caller waits for then comes
  /// last. For little that is urgent. Both pointers are aligned to 4 bytes; host memory that is not
  /// pinned may block the caller.
  virtual void write_to_host(ComputeStream stream, float* host, const float* device,
                             size_t count) = 0;
  /// Enqueues on `stream` a fill of device memory with 0xFF bytes: NaN in every float type.
  virtual void poison(ComputeStream stream, void* target, size_t bytes) = 0;

  /// Zero-filled device memory, freed by the deleter. Synchronises only as the allocator does.
  [[nodiscard]] virtual std::shared_ptr<void> allocate(size_t bytes) = 0;
  /// Registers host memory for asynchronous copies. False: refused (limits, containers); copies
  /// then still work but may block the caller. `unpin` undoes it and never throws.
  [[nodiscard]] virtual bool pin(void* host, size_t bytes) = 0;
  virtual void unpin(void* host, size_t bytes) noexcept = 0;
};

/// The CUDA device `index`. Throws Error(kDevice) if it does not exist or the build has no CUDA.
[[nodiscard]] std::shared_ptr<Device> make_cuda_device(int index);

/// How the fake device delays what is enqueued on its queues and streams. Delays are a function of
/// (seed, queue, index in the queue).
struct SimulatedDeviceOptions {
  uint64_t seed = 0;
  int max_delay_microseconds =
      0;  ///< each copy or kernel waits a random time up to this before it touches memory
  bool poison_targets = false;  ///< fills a copy's target with 0xFF bytes when the copy's turn has
                                ///< come, before the delay, so that a reader that did not wait sees
                                ///< NaN
};

/// The fake device: "device memory" is host memory, every queue and stream is a thread that works
/// in order with random delays. It proves the order of hand-offs without a GPU.
class SimulatedDevice : public Device {
 public:
  /// Enqueues `work` on `stream` (null: runs it now).
  virtual void submit(ComputeStream stream, std::function<void()> work) = 0;
};
[[nodiscard]] std::shared_ptr<SimulatedDevice> make_simulated_device(
    const SimulatedDeviceOptions& options);

}  // namespace outboard

#endif  // OUTBOARD_DEVICE_H_
