// Updating pieces on the host; see host_lane.h.
#include "offload/host_lane.h"

#include <algorithm>

namespace outboard {

HostLane::HostLane(cpu::Arena& arena, Device* device, Progress& progress, Trace& trace,
                   size_t chunk_elements, Driver::FailureHandler on_failure)
    : progress_(progress),
      trace_(trace),
      chunk_elements_(chunk_elements),
      update_(arena),
      weight_return_(device),
      thread_(std::move(on_failure)) {}

void HostLane::push(PieceUpdate piece) {
  {
    const std::lock_guard lock(mutex_);
    const std::pair key(piece.parameter->rank, piece.index);
    ready_.emplace(key, std::move(piece));
  }
  thread_.post([this] { run_next(); });
}

std::vector<PieceUpdate> HostLane::take() {
  const std::lock_guard lock(mutex_);
  std::vector<PieceUpdate> pieces;
  size_t elements = 0;
  while (!ready_.empty()) {
    PieceUpdate& next = ready_.begin()->second;
    elements += next.last - next.first;
    if (!pieces.empty() && elements > chunk_elements_) break;
    pieces.push_back(std::move(next));
    ready_.erase(ready_.begin());
  }
  return pieces;
}

void HostLane::run_next() {
  const std::vector<PieceUpdate> pieces = take();
  if (pieces.empty()) return;  // an earlier run took them along
  measure(pieces);
  const auto begin = Trace::Clock::now();
  const UpdatedWeight updated = update_.update(pieces);
  if (trace_.is_on()) {
    trace_.host("host update", pieces.front().parameter->spec.name, begin, Trace::Clock::now());
  }
  send(updated, pieces);
}

void HostLane::measure(const std::vector<PieceUpdate>& pieces) {
  // Order: the pieces of a parameter are pushed together and taken from its first element on, so
  // what is measured is that of weights of which none has been updated yet.
  std::vector<Parameter*> measured;
  for (const PieceUpdate& piece : pieces) {
    if (piece.first == 0 && piece.parameter->needs_whole()) measured.push_back(piece.parameter);
  }
  if (!measured.empty()) update_.measure(pieces, measured);
}

void HostLane::send(const UpdatedWeight& updated, const std::vector<PieceUpdate>& pieces) {
  for (const PieceUpdate& piece : pieces) weight_return_.begin(piece.weight_is_free);
  const EventPtr before = trace_.is_on() ? weight_return_.finish() : nullptr;
  const EventPtr sent = weight_return_.send(updated);
  if (before != nullptr) {
    size_t bytes = 0;
    for (const PieceUpdate& piece : pieces) {
      bytes += (piece.last - piece.first) * bytes_of(piece.parameter->spec.type);
    }
    trace_.device("weights up", pieces.front().parameter->spec.name, before, sent, bytes);
  }
  for (const PieceUpdate& piece : pieces) progress_.end(*piece.parameter, sent);
}

void HostLane::adopt(Parameter& parameter, EventPtr weight_is_free) {
  thread_.post([this, &parameter, weight_is_free = std::move(weight_is_free)] {
    weight_return_.begin(weight_is_free);
    progress_.end(parameter, weight_return_.send(update_.adopt(parameter)));
  });
}

EventPtr HostLane::flush() {
  return thread_.submit([this] { return weight_return_.finish(); }).get();
}

}  // namespace outboard
