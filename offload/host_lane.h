// The way of a piece through the host: taken in the order in which the next forward needs weights,
// updated on the CPU, sent back. Owns the thread that does it; decides nothing about steps.
#ifndef OUTBOARD_OFFLOAD_HOST_LANE_H_
#define OUTBOARD_OFFLOAD_HOST_LANE_H_

#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "offload/driver.h"
#include "offload/host_update.h"
#include "offload/progress.h"
#include "offload/trace.h"
#include "offload/weight_return.h"

namespace outboard {

/// Stages 2 and 3 on a thread of their own. Any thread may push.
class HostLane {
 public:
  /// Pieces are updated together up to `chunk_elements` elements. `on_failure` is called on the
  /// lane's thread; the failure is rethrown by rethrow_failure() as well.
  HostLane(cpu::Arena& arena, Device* device, Progress& progress, Trace& trace,
           size_t chunk_elements, Driver::FailureHandler on_failure);

  /// A piece whose gradient is in host memory, or on its way there with nobody waiting for it yet.
  /// progress.begin() counted it.
  void push(PieceUpdate piece);
  /// The caller computed the host image itself (parameters without a rule).
  void adopt(Parameter& parameter, EventPtr weight_is_free);
  /// After everything pushed so far is enqueued: the event behind the last copy (null without a
  /// device).
  [[nodiscard]] EventPtr flush();

  void drain() { thread_.drain(); }
  void rethrow_failure() { thread_.rethrow_failure(); }
  [[nodiscard]] CopyQueue* queue() { return weight_return_.queue(); }
  /// Counts anew behind what was pushed so far.
  void reset_times() {
    thread_.post([this] { update_.times() = {}; });
  }
  /// What times() will be when everything pushed so far is done; blocks until then.
  [[nodiscard]] HostUpdateTimes settled_times() {
    return thread_.submit([this] { return update_.times(); }).get();
  }
  /// Seconds since reset_times(). Call drain() or flush() first.
  [[nodiscard]] HostUpdateTimes& times() { return update_.times(); }

 private:
  void run_next();
  [[nodiscard]] std::vector<PieceUpdate> take();
  void measure(const std::vector<PieceUpdate>& pieces);
  void send(const UpdatedWeight& updated, const std::vector<PieceUpdate>& pieces);

  Progress& progress_;
  Trace& trace_;
  size_t chunk_elements_;
  HostUpdate update_;
  WeightReturn weight_return_;
  std::mutex mutex_;
  std::multimap<std::pair<size_t, size_t>, PieceUpdate> ready_;  // by rank, then piece
  Driver thread_;                                                // last: it uses what is above
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_HOST_LANE_H_
