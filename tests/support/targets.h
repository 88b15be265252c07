// Runs a test body on every SIMD target that the binary holds and the CPU can run.
#ifndef OUTBOARD_TESTS_SUPPORT_TARGETS_H_
#define OUTBOARD_TESTS_SUPPORT_TARGETS_H_

#include <gtest/gtest.h>

#include <cstdint>

#include "hwy/highway.h"
#include "hwy/targets.h"

namespace outboard::testing {

/// While it lives, kernel lookups choose the target `bit`.
class ForcedTarget {
 public:
  explicit ForcedTarget(int64_t bit) { hwy::SetSupportedTargetsForTest(bit); }
  ~ForcedTarget() { hwy::SetSupportedTargetsForTest(0); }
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;
};

/// Calls `body()` once per target, with that target forced and named in failures.
template <class Body>
void for_each_target(const Body& body) {
  for (const int64_t bit : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(bit));
    const ForcedTarget forced(bit);
    body();
  }
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_TARGETS_H_
