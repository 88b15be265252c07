// Looks up a rule's launcher, and what it needs; expanded from the catalogue.
#include <array>
#include <cstddef>

#include "gpu_kernels/launch.h"
#include "outboard_rules.h"

namespace outboard::gpu {

RuleLauncher rule_launcher(RuleId rule) {
  static constexpr std::array<RuleLauncher, kRuleCount> kLaunchers = {
#define OUTBOARD_RULE(type, stem) &launch_##stem,
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  };
  return kLaunchers[static_cast<size_t>(rule)];
}

bool needs_norms(RuleId rule) {
  static constexpr std::array<bool, kRuleCount> kAnswers = {
#define OUTBOARD_RULE(type, stem) NeedsNorms<rules::type>,
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  };
  return kAnswers[static_cast<size_t>(rule)];
}

bool needs_factors(RuleId rule) {
  static constexpr std::array<bool, kRuleCount> kAnswers = {
#define OUTBOARD_RULE(type, stem) NeedsFactors<rules::type>,
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  };
  return kAnswers[static_cast<size_t>(rule)];
}

}  // namespace outboard::gpu
