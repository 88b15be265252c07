// Hyper-parameter sets for any rule of the catalogue, made from its description alone: the
// defaults, each value at its edges, each flag, and everything switched on.
#ifndef OUTBOARD_TESTS_SUPPORT_RULE_CASES_H_
#define OUTBOARD_TESTS_SUPPORT_RULE_CASES_H_

#include <cstddef>
#include <string>
#include <vector>

#include "outboard/rule.h"
#include "outboard/state_format.h"

namespace outboard::testing {

struct RuleCase {
  std::string name;
  std::vector<double> hyper;
};

inline std::vector<double> default_hyper(const RuleInfo& rule) {
  std::vector<double> hyper;
  for (const HyperParameter& parameter : rule.hyper_parameters) {
    hyper.push_back(parameter.default_value);
  }
  return hyper;
}

/// Values worth trying for one hyper-parameter.
inline std::vector<double> interesting_values(const HyperParameter& parameter) {
  if (parameter.is_flag) return {0, 1};
  if (parameter.is_open && parameter.maximum == 1)
    return {0.0, 0.3, 0.5, 0.9, 0.95, 0.999};  // beta
  if (parameter.key == "eps") return {0.0, 1e-8, 1e-3};
  if (parameter.key.starts_with("t_")) return {0.0, 4.0, 1000.0};  // steps of a warm-up
  return {0.0, 0.01, 0.25, 0.9};
}

/// Every single change of the defaults, and of a set in which all is on, that the rule's check()
/// accepts.
inline std::vector<RuleCase> rule_cases(const RuleInfo& rule) {
  std::vector<double> busy = default_hyper(rule);
  for (size_t i = 0; i < busy.size(); ++i) {
    const HyperParameter& parameter = rule.hyper_parameters[i];
    if (parameter.is_flag) busy[i] = 1;
    if (!parameter.is_flag && busy[i] == 0) busy[i] = 0.1;
  }
  std::vector<RuleCase> cases;
  for (const std::vector<double>& base : {default_hyper(rule), busy}) {
    for (size_t i = 0; i < base.size(); ++i) {
      for (const double value : interesting_values(rule.hyper_parameters[i])) {
        RuleCase changed = {std::string(rule.hyper_parameters[i].key) + "=" + std::to_string(value),
                            base};
        changed.hyper[i] = value;
        if (rule.check(changed.hyper) == nullptr) cases.push_back(changed);
      }
    }
  }
  return cases;
}

/// Rows of a parameter of `elements` elements as a matrix: an odd number, if one divides them.
inline size_t test_rows(size_t elements) {
  for (const size_t rows : {size_t{19}, size_t{7}, size_t{3}}) {
    if (elements % rows == 0) return rows;
  }
  return elements % 2 == 0 && elements > 0 ? elements / 2 : 1;
}

/// How a state is stored where signed and unsigned ones are to be stored as `formats` says.
inline StateFormat format_of(const StateInfo& state, const StateFormats& formats) {
  if (state.shape != StateShape::kElements) return {};
  return state.is_signed ? formats.signed_state : formats.unsigned_state;
}

/// Whether state `k` exists with these hyper-parameters.
inline bool has_state(const RuleInfo& rule, size_t k, const std::vector<double>& hyper) {
  const int needed_by = rule.states[k].needed_by;
  return needed_by < 0 || hyper[static_cast<size_t>(needed_by)] != 0;
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_RULE_CASES_H_
