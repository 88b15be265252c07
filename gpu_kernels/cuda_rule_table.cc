// Looks up a rule's launcher; expanded from the catalogue.
#include <array>
#include <cstddef>

#include "gpu_kernels/launch.h"

namespace outboard::gpu {

RuleLauncher rule_launcher(RuleId rule) {
  static constexpr std::array<RuleLauncher, kRuleCount> kLaunchers = {
#define OUTBOARD_RULE(type, stem) &launch_##stem,
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  };
  return kLaunchers[static_cast<size_t>(rule)];
}

}  // namespace outboard::gpu
