// Recording of spans, and the conversion of the device's times to the host's clock.
#include "offload/trace.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace outboard {
namespace {

constexpr int kAnchorRounds = 5;  // the tightest is taken: a thread may be descheduled in some

double seconds(Trace::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Trace::Trace(std::shared_ptr<Device> device) : device_(std::move(device)) {}

void Trace::start(ComputeStream stream) {
  stop();
  // Outside the lock: it waits for the device, and threads that record must not.
  Anchor anchor = make_anchor(stream);
  const std::lock_guard lock(mutex_);
  host_spans_.clear();
  device_spans_.clear();
  anchor_ = std::move(anchor);
  start_ = Clock::now();
  is_on_.store(true, std::memory_order_relaxed);
}

void Trace::stop() { is_on_.store(false, std::memory_order_relaxed); }

void Trace::host(std::string_view lane, std::string name, Clock::time_point begin,
                 Clock::time_point end, size_t bytes) {
  const std::lock_guard lock(mutex_);
  // Asked under the lock too: start() sets both under it, so no span of an earlier trace slips in.
  if (!is_on() || begin < start_) return;
  host_spans_.push_back({.lane = std::string(lane),
                         .name = std::move(name),
                         .begin = seconds(begin - start_),
                         .end = seconds(end - start_),
                         .bytes = bytes});
}

void Trace::device(std::string_view lane, std::string name, EventPtr begin, EventPtr end,
                   size_t bytes) {
  if (device_ == nullptr || begin == nullptr || end == nullptr) return;
  const std::lock_guard lock(mutex_);
  if (!is_on()) return;
  device_spans_.push_back({.lane = std::string(lane),
                           .name = std::move(name),
                           .begin = std::move(begin),
                           .end = std::move(end),
                           .bytes = bytes});
}

std::vector<TraceSpan> Trace::take() {
  std::vector<TraceSpan> spans;
  std::vector<DeviceSpan> found;
  Anchor anchor;
  double offset = 0;
  {
    const std::lock_guard lock(mutex_);
    spans.swap(host_spans_);
    found.swap(device_spans_);
    anchor = anchor_;
    offset = seconds(anchor_.time - start_);
  }
  resolve(anchor, offset, found, spans);
  std::stable_sort(spans.begin(), spans.end(), [](const TraceSpan& one, const TraceSpan& other) {
    return one.begin < other.begin;
  });
  return spans;
}

Trace::Anchor Trace::make_anchor(ComputeStream stream) const {
  if (device_ == nullptr) return {.event = nullptr, .time = Clock::now()};
  device_->record(stream)->synchronize();
  Anchor best;
  Clock::duration tightest = Clock::duration::max();
  for (int round = 0; round < kAnchorRounds; ++round) {
    const Clock::time_point before = Clock::now();
    EventPtr event = device_->record(stream);
    event->synchronize();
    const Clock::duration taken = Clock::now() - before;
    if (taken >= tightest) continue;
    tightest = taken;
    best = {.event = std::move(event), .time = before + taken / 2};
  }
  return best;
}

// `offset`: the anchor's time in seconds since start, not above zero.
void Trace::resolve(const Anchor& anchor, double offset, const std::vector<DeviceSpan>& found,
                    std::vector<TraceSpan>& spans) const {
  for (const DeviceSpan& span : found) {
    span.begin->synchronize();
    span.end->synchronize();
    const double begin = offset + device_->seconds_between(*anchor.event, *span.begin);
    if (begin < 0) continue;
    // Not from the anchor as well: CUDA's differences are single precision, and short ones finer.
    const double end = begin + std::max(0.0, device_->seconds_between(*span.begin, *span.end));
    spans.push_back(
        {.lane = span.lane, .name = span.name, .begin = begin, .end = end, .bytes = span.bytes});
  }
}

TraceHostSpan::~TraceHostSpan() {
  if (trace_ == nullptr) return;
  try {
    trace_->host(lane_, std::string(name_), begin_, Trace::Clock::now(), bytes_);
  } catch (const std::exception&) {
    return;  // a trace with a hole is better than a step that fails for it
  }
}

}  // namespace outboard
