// The driver: one thread per optimizer that runs the host stages in the order in which they were
// posted. It knows nothing of gradients or weights.
#ifndef OUTBOARD_OFFLOAD_DRIVER_H_
#define OUTBOARD_OFFLOAD_DRIVER_H_

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace outboard {

/// Runs posted work in order on its own thread. Posting never blocks. Any thread may post.
class Driver {
 public:
  using FailureHandler = std::function<void(const std::exception&)>;

  /// `on_failure` is called on the driver's thread when posted work fails, before the failure can
  /// be rethrown.
  explicit Driver(FailureHandler on_failure = {});
  /// Runs what was posted, then ends the thread.
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  /// Work whose failure is kept and rethrown by the next rethrow_failure().
  void post(std::function<void()> work);

  /// Work whose result (or exception) the caller waits for through the future.
  template <class Work>
  [[nodiscard]] auto submit(Work work) -> std::future<decltype(work())> {
    auto task = std::make_shared<std::packaged_task<decltype(work())()>>(std::move(work));
    auto result = task->get_future();
    post([task] { (*task)(); });
    return result;
  }

  /// Blocks until everything posted so far has run.
  void drain();

  /// Throws the first failure of posted work since the last call, if there was one.
  void rethrow_failure();

 private:
  void run();
  void note_failure();

  FailureHandler on_failure_;
  std::mutex mutex_;
  std::condition_variable posted_;
  std::deque<std::function<void()>> queue_;
  std::exception_ptr failure_;
  bool is_ending_ = false;
  std::thread thread_;  // last: starts when everything above exists
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_DRIVER_H_
