// The oneTBB arena, and the floating-point environment in which kernels run.
#include "cpu_kernels/parallel.h"

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <cfenv>
#include <future>
#include <thread>
#include <vector>

#include "outboard/error.h"

namespace outboard::cpu {
namespace {

/// Round to nearest with subnormals kept, as in a fresh process, for the life of the object; then
/// what was set before. A host program may run with flush-to-zero, which would change the results.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&before_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  std::fenv_t before_;
};

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

#if defined(__SANITIZE_THREAD__)
/// The same fork and join on threads that ThreadSanitizer knows. Of oneTBB, whose library is not
/// built with it, it sees neither the order between a caller and its pieces nor the reuse of tasks.
class Arena::Impl {
 public:
  explicit Impl(int threads) : threads_(threads) {}

  void run(size_t count, size_t grain, const std::function<void(size_t, size_t)>& body) const {
    const size_t grains = (count + grain - 1) / grain;
    const size_t parts = std::min(grains, static_cast<size_t>(threads_));
    const auto part = [&](size_t i) {
      const DefaultFloatingPoint guard;
      body(grains * i / parts * grain, std::min(grains * (i + 1) / parts * grain, count));
    };
    std::vector<std::future<void>> others;
    for (size_t i = 1; i < parts; ++i) {
      others.push_back(std::async(std::launch::async, part, i));
    }
    part(0);
    for (std::future<void>& other : others) other.get();
  }

  [[nodiscard]] int threads() const { return threads_; }

 private:
  int threads_;
};
#else
class Arena::Impl {
 public:
  explicit Impl(int threads) : arena_(threads) {}

  void run(size_t count, size_t grain, const std::function<void(size_t, size_t)>& body) {
    using Range = oneapi::tbb::blocked_range<size_t>;
    const size_t grains = (count + grain - 1) / grain;
    const auto piece = [&](const Range& range) {
      const DefaultFloatingPoint guard;
      body(range.begin() * grain, std::min(range.end() * grain, count));
    };
    // One contiguous run per thread as long as all keep pace: the same thread meets the same memory
    // at every step.
    arena_.execute([&] {
      oneapi::tbb::parallel_for(Range(0, grains), piece, oneapi::tbb::auto_partitioner());
    });
  }

  [[nodiscard]] int threads() const { return arena_.max_concurrency(); }

 private:
  oneapi::tbb::task_arena arena_;
};
#endif

Arena::Arena(int threads) {
  if (threads < 0) {
    fail(ErrorKind::kValue, "Arena", "threads = ", threads,
         " is negative; use 0 to choose by the number of cores");
  }
  // More threads than cores would only wait for each other, and oneTBB prints a warning about them.
  impl_ =
      std::make_unique<Impl>(threads == 0 ? default_threads() : std::min(threads, usable_cores()));
}

Arena::~Arena() = default;

void Arena::run(size_t count, size_t grain,
                const std::function<void(size_t first, size_t last)>& body) {
  if (count != 0) impl_->run(count, std::max<size_t>(grain, 1), body);
}

void Arena::run_many(std::span<const size_t> lengths, size_t grain,
                     const std::function<void(size_t array, size_t first, size_t last)>& body) {
  std::vector<size_t> ends;  // in grains, of each array in the row of all
  size_t grains = 0;
  for (const size_t length : lengths) ends.push_back(grains += (length + grain - 1) / grain);
  run(grains, 1, [&](size_t begin, size_t end) {
    auto array = static_cast<size_t>(std::ranges::upper_bound(ends, begin) - ends.begin());
    while (begin < end) {
      const size_t start = array == 0 ? 0 : ends[array - 1];
      const size_t stop = std::min(end, ends[array]);
      if (begin < stop) {
        body(array, (begin - start) * grain, std::min((stop - start) * grain, lengths[array]));
      }
      begin = std::max(begin, stop);
      ++array;
    }
  });
}

int Arena::threads() const { return impl_->threads(); }

int Arena::default_threads() {
  const int cores = usable_cores();
  return cores > 4 ? cores - 2 : cores;
}

}  // namespace outboard::cpu
