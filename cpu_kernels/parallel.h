// The oneTBB arena: the only place that starts compute threads.
#ifndef OUTBOARD_CPU_KERNELS_PARALLEL_H_
#define OUTBOARD_CPU_KERNELS_PARALLEL_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <span>

namespace outboard::cpu {

/// A bounded pool of compute threads owned by one optimizer. Two arenas share nothing but the
/// machine. run() may be called from any thread, one call at a time per arena.
class Arena {
 public:
  /// `threads` counts the calling thread; 0 chooses default_threads(), and more than the cores that
  /// the process may use counts as that many. Throws Error(kValue) if it is negative.
  explicit Arena(int threads);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Calls body(first, last) on disjoint ranges that cover [0, count), cut at multiples of `grain`,
  /// on at most threads() threads, each with round-to-nearest and subnormals on. Returns when all
  /// are done; rethrows the first exception.
  void run(size_t count, size_t grain, const std::function<void(size_t first, size_t last)>& body);

  /// The same over several arrays in one go: calls body(array, first, last) on disjoint ranges that
  /// cover [0, lengths[array]) of every array, cut at multiples of `grain`. Starting the threads
  /// costs as much as updating 100,000 elements, so small arrays belong together.
  void run_many(std::span<const size_t> lengths, size_t grain,
                const std::function<void(size_t array, size_t first, size_t last)>& body);

  [[nodiscard]] int threads() const;

  /// All cores that the process may use, less two for the launching threads where there are more
  /// than four.
  [[nodiscard]] static int default_threads();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_PARALLEL_H_
