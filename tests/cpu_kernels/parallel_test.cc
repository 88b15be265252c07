// The arena: coverage, grain, exceptions and the floating-point environment.
#include "cpu_kernels/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cfenv>
#include <stdexcept>
#include <vector>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "outboard/error.h"

namespace outboard::cpu {
namespace {

TEST(Arena, CoversEveryIndexOnceInWholeGrains) {
  Arena arena(3);
  for (const size_t count : {1, 255, 256, 257, 10000}) {
    std::vector<std::atomic<int>> seen(count);
    std::atomic<bool> is_cut_well = true;
    arena.run(count, 256, [&](size_t first, size_t last) {
      if (first % 256 != 0 || (last % 256 != 0 && last != count)) is_cut_well = false;
      for (size_t i = first; i < last; ++i) seen[i].fetch_add(1);
    });
    for (size_t i = 0; i < count; ++i) ASSERT_EQ(seen[i], 1) << i;
    EXPECT_TRUE(is_cut_well);
  }
}

TEST(Arena, NothingToDoCallsNothing) {
  Arena(1).run(0, 256, [](size_t, size_t) { FAIL(); });
}

TEST(Arena, RethrowsTheBodysException) {
  Arena arena(2);
  const auto body = [](size_t, size_t) { throw std::runtime_error("from the body"); };
  EXPECT_THROW(arena.run(10000, 1, body), std::runtime_error);
  std::atomic<size_t> done = 0;
  arena.run(100, 1, [&](size_t first, size_t last) { done += last - first; });
  EXPECT_EQ(done, 100u) << "the arena is usable after an exception";
}

TEST(Arena, NegativeThreadsAreRefused) { EXPECT_THROW(Arena(-1), Error); }

TEST(Arena, ZeroThreadsChoosesTheDefault) {
  EXPECT_GE(Arena::default_threads(), 1);
  EXPECT_EQ(Arena(0).threads(), Arena::default_threads());
}

#if defined(__SSE2__)
constexpr unsigned kFlushToZeroAndDenormalsAreZero = 0x8040;
constexpr unsigned kRoundingBits = 0x6000;

TEST(Arena, BodiesRunWithSubnormalsAndRoundToNearestWhateverTheCallerHas) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | kFlushToZeroAndDenormalsAreZero | 0x2000);  // and round down
  std::atomic<unsigned> seen = 0;
  Arena(2).run(64, 1, [&](size_t, size_t) { seen |= _mm_getcsr(); });
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  EXPECT_EQ(seen & (kFlushToZeroAndDenormalsAreZero | kRoundingBits), 0u);
  EXPECT_EQ(after & 0xFFC0, (before | kFlushToZeroAndDenormalsAreZero | 0x2000) & 0xFFC0)
      << "the caller's environment is restored";
}
#endif

}  // namespace
}  // namespace outboard::cpu
