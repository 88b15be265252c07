// Forcing a SIMD target changes what is looked up.
#include "cpu_kernels/targets.h"

#include <gtest/gtest.h>

#include <set>

#include "cpu_kernels/rule_kernel.h"

namespace outboard::cpu {
namespace {

TEST(Targets, ForcingOneChangesTheChosenTargetAndTheKernel) {
  const std::string best = chosen_target();
  std::set<std::string> names;
  std::set<RuleKernel> kernels;
  for (const Target& target : supported_targets()) {
    force_target(target.bit);
    EXPECT_EQ(chosen_target(), target.name);
    names.insert(chosen_target());
    kernels.insert(rule_kernel(RuleId::kAdamW));
  }
  force_target(0);
  EXPECT_EQ(chosen_target(), best);
  EXPECT_EQ(names.size(), supported_targets().size());
  EXPECT_EQ(kernels.size(), names.size()) << "each target has a kernel of its own";
}

TEST(Targets, AForcedTargetDoesNotHideTheOthers) {
  const size_t count = supported_targets().size();
  force_target(supported_targets().back().bit);
  const std::string forced = chosen_target();
  EXPECT_EQ(supported_targets().size(), count);
  EXPECT_EQ(chosen_target(), forced) << "listing does not undo the forcing";
  force_target(0);
}

}  // namespace
}  // namespace outboard::cpu
