// Which SIMD targets this binary holds, and the test hook that forces one.
#ifndef OUTBOARD_CPU_KERNELS_TARGETS_H_
#define OUTBOARD_CPU_KERNELS_TARGETS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace outboard::cpu {

/// A target that this binary holds and this CPU can run. `bit` identifies it to force_target().
struct Target {
  int64_t bit;
  std::string name;
};

[[nodiscard]] std::vector<Target> supported_targets();

/// Makes every later kernel lookup in the process choose `bit`; 0 goes back to the best one. For
/// tests only: it is the one switch in the library that is not per optimizer, because the dispatch
/// tables are the SIMD library's own.
void force_target(int64_t bit);

/// Name of the target that a lookup chooses now ("AVX3_SPR", "AVX2", ...).
[[nodiscard]] std::string chosen_target();

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_TARGETS_H_
