// Lists and forces SIMD targets. The library's own dispatch follows hwy::SupportedTargets() at each
// lookup.
#include "cpu_kernels/targets.h"

#include "hwy/highway.h"
#include "hwy/targets.h"

namespace outboard::cpu {

std::vector<Target> supported_targets() {
  const int64_t mask = hwy::SupportedTargets();
  hwy::SetSupportedTargetsForTest(0);  // so that a forced target does not hide the others
  std::vector<Target> targets;
  for (const int64_t bit : hwy::SupportedAndGeneratedTargets()) {
    targets.push_back({bit, hwy::TargetName(bit)});
  }
  hwy::SetSupportedTargetsForTest(mask);
  return targets;
}

void force_target(int64_t bit) { hwy::SetSupportedTargetsForTest(bit); }

std::string chosen_target() {
  const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(usable & -usable);
}

}  // namespace outboard::cpu
