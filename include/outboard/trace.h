// What the engine reports of one traced piece of work.
#ifndef OUTBOARD_TRACE_H_
#define OUTBOARD_TRACE_H_

#include <cstddef>
#include <string>

namespace outboard {

/// One piece of work. Times are seconds since Engine::start_trace(), `bytes` what it moved or
/// touched (0: not said). Lanes: "gradients down", "host update", "weights up", "state up", "device
/// update", "state down", "backward", "exposed" (the caller's stream waits for weights), "step"
/// (the caller is inside begin_step() or finish_step()).
struct TraceSpan {
  std::string lane;
  std::string name;
  double begin = 0;
  double end = 0;
  size_t bytes = 0;
};

}  // namespace outboard

#endif  // OUTBOARD_TRACE_H_
