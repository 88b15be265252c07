// Adds the time of a scope to a counter of seconds.
#ifndef OUTBOARD_OFFLOAD_STOPWATCH_H_
#define OUTBOARD_OFFLOAD_STOPWATCH_H_

#include <chrono>

namespace outboard {

class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), start_(Clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double& seconds_;
  Clock::time_point start_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_STOPWATCH_H_
