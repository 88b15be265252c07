// The ways that rules take through the engine, so that sweeps over what the engine does need not be
// repeated for rules that differ in their arithmetic alone.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_RULE_WAYS_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_RULE_WAYS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "outboard/rule.h"

namespace outboard::testing {

/// Elements are updated as they come, or behind a pass over the whole parameter that measures its
/// norms or moves its row and column means.
enum class Way { kElements, kNorms, kMeans };

inline constexpr Way kEveryWay[] = {Way::kElements, Way::kNorms, Way::kMeans};

inline std::string name_of(Way way) {
  return way == Way::kElements ? "Elements" : way == Way::kNorms ? "Norms" : "Means";
}

inline Way way_of(const RuleInfo& rule) {
  if (!rule.needs_whole()) return Way::kElements;
  return rule.with_norms != nullptr ? Way::kNorms : Way::kMeans;
}

/// Every rule of the catalogue that takes this way.
inline std::vector<RuleId> rules_of(Way way) {
  std::vector<RuleId> rules;
  for (size_t i = 0; i < kRuleCount; ++i) {
    const auto rule = static_cast<RuleId>(i);
    if (way_of(rule_info(rule)) == way) rules.push_back(rule);
  }
  return rules;
}

/// Seeds of a sweep along `way`: twice as many where most rules go.
inline uint64_t seeds_of(Way way, uint64_t seeds) {
  return way == Way::kElements ? 2 * seeds : seeds;
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_RULE_WAYS_H_
