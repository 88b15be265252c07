// The timeline's recorder: what ran when, on the host and on the device, on one clock. It only
// records: it moves nothing, orders nothing, and knows neither steps nor chunks. Files are written
// elsewhere.
#ifndef OUTBOARD_OFFLOAD_TRACE_H_
#define OUTBOARD_OFFLOAD_TRACE_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "outboard/device.h"
#include "outboard/trace.h"

namespace outboard {

/// Collects spans while it is on. Host spans come with host times; device spans with two events
/// that are kept, and only read by take(), so that recording never waits for the device. Thread
/// safe.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  /// `device`: whose events device() will be given; null where there are none.
  explicit Trace(std::shared_ptr<Device> device);

  /// Forgets what was recorded and begins anew. Waits until `stream` is idle, because an event on
  /// an idle stream ties the device's clock to the host's (within half the time from its record to
  /// the return of its wait, some 10 us on CUDA). Throws Error(kDevice) if earlier work failed;
  /// nothing is recorded then.
  void start(ComputeStream stream);
  /// What is recorded later is ignored; what was recorded stays until take() or start().
  void stop();
  /// One relaxed load: ask before building names or recording events.
  [[nodiscard]] bool is_on() const noexcept { return is_on_.load(std::memory_order_relaxed); }

  /// Ignored if the trace is off, or was started only after `begin`.
  void host(std::string_view lane, std::string name, Clock::time_point begin, Clock::time_point end,
            size_t bytes = 0);
  /// Work between two events of the same stream or queue. Ignored if the trace is off or an event
  /// is null, and left out by take() if it began before the trace.
  void device(std::string_view lane, std::string name, EventPtr begin, EventPtr end,
              size_t bytes = 0);

  /// Hands over what was recorded, in order of begin, and forgets it. Blocks until the device has
  /// done it. Throws Error(kDevice) if that work failed; the spans are gone then.
  [[nodiscard]] std::vector<TraceSpan> take();

 private:
  struct DeviceSpan {
    std::string lane;
    std::string name;
    EventPtr begin;
    EventPtr end;
    size_t bytes;
  };
  struct Anchor {  // one moment on both clocks
    EventPtr event;
    Clock::time_point time;
  };
  [[nodiscard]] Anchor make_anchor(ComputeStream stream) const;
  void resolve(const Anchor& anchor, double offset, const std::vector<DeviceSpan>& found,
               std::vector<TraceSpan>& spans) const;

  std::shared_ptr<Device> device_;
  std::atomic<bool> is_on_ = false;
  std::mutex mutex_;  // guards what follows
  Clock::time_point start_;
  Anchor anchor_;
  std::vector<TraceSpan> host_spans_;
  std::vector<DeviceSpan> device_spans_;
};

/// Records a scope as a host span, if the trace is on when the scope begins and when it ends.
class TraceHostSpan {
 public:
  /// `trace` may be null. `lane` and `name` are not copied and must outlive the scope.
  TraceHostSpan(Trace* trace, std::string_view lane, std::string_view name, size_t bytes = 0)
      : trace_(trace != nullptr && trace->is_on() ? trace : nullptr),
        lane_(lane),
        name_(name),
        bytes_(bytes),
        begin_(trace_ != nullptr ? Trace::Clock::now() : Trace::Clock::time_point()) {}
  /// Never throws: without memory the span is lost.
  ~TraceHostSpan();
  TraceHostSpan(const TraceHostSpan&) = delete;
  TraceHostSpan& operator=(const TraceHostSpan&) = delete;

 private:
  Trace* trace_;
  std::string_view lane_;
  std::string_view name_;
  size_t bytes_;
  Trace::Clock::time_point begin_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TRACE_H_
