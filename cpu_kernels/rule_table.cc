// The run-time view of the catalogue of rules: descriptions, validation and CPU kernels. Expanded
// from rules.def.
#include <array>
#include <string>

#include "cpu_kernels/rule_kernel.h"
#include "outboard/error.h"
#include "outboard/rule.h"
#include "outboard_rules.h"

namespace outboard {
namespace {

template <class Rule>
RuleScalars erased_scalars(std::span<const double> hyper, int64_t step, double gradient_scale) {
  return RuleScalars::of(Rule::template scalars<float>(hyper, step, gradient_scale));
}

template <NeedsNorms Rule>
RuleScalars erased_with_norms(const RuleScalars& scalars, double weight_squares,
                              double update_squares) {
  const auto s = scalars.as<typename Rule::template Scalars<float>>();
  return RuleScalars::of(Rule::with_norms(s, weight_squares, update_squares));
}

template <NeedsFactors Rule>
FactorScalars erased_factor_scalars(const RuleScalars& scalars) {
  return Rule::factor_scalars(scalars.as<typename Rule::template Scalars<float>>());
}

template <NeedsFactors Rule>
RuleScalars erased_with_row_mean(const RuleScalars& scalars, double row_mean) {
  const auto s = scalars.as<typename Rule::template Scalars<float>>();
  return RuleScalars::of(Rule::with_row_mean(s, row_mean));
}

template <class Rule>
constexpr RuleInfo describe(RuleId id) {
  static_assert(Rule::kStates.size() <= kMaxStates);
  RuleInfo info = {.id = id,
                   .name = Rule::kName,
                   .hyper_parameters = Rule::kHyperParameters,
                   .states = Rule::kStates,
                   .check = &Rule::check,
                   .scalars = &erased_scalars<Rule>};
  if constexpr (NeedsNorms<Rule>) info.with_norms = &erased_with_norms<Rule>;
  if constexpr (NeedsFactors<Rule>) {
    info.factor_scalars = &erased_factor_scalars<Rule>;
    info.with_row_mean = &erased_with_row_mean<Rule>;
  }
  return info;
}

constexpr std::array<RuleInfo, kRuleCount> kRules{
#define OUTBOARD_RULE(type, stem) describe<rules::type>(RuleId::k##type),
#include "outboard/rules.def"
#undef OUTBOARD_RULE
};

bool is_valid(const HyperParameter& parameter, double value) {
  if (parameter.is_flag) return value == 0 || value == 1;
  const bool is_below = parameter.is_open ? value < parameter.maximum : value <= parameter.maximum;
  return parameter.minimum <= value && is_below;
}

}  // namespace

const RuleInfo& rule_info(RuleId id) { return kRules.at(static_cast<size_t>(id)); }

const RuleInfo& rule_named(std::string_view name) {
  std::string known;
  for (const RuleInfo& rule : kRules) {
    if (rule.name == name) return rule;
    known += known.empty() ? "" : ", ";
    known += rule.name;
  }
  fail(ErrorKind::kValue, "rule_named", "unknown rule '", name, "'; known are ", known);
}

void check_hyper(const RuleInfo& rule, std::span<const double> hyper, std::string_view who) {
  if (hyper.size() != rule.hyper_parameters.size()) {
    fail(ErrorKind::kValue, who, rule.name, " takes ", rule.hyper_parameters.size(),
         " hyper-parameters, got ", hyper.size(), "; pass one value for each");
  }
  for (size_t i = 0; i < hyper.size(); ++i) {
    const HyperParameter& parameter = rule.hyper_parameters[i];
    if (is_valid(parameter, hyper[i])) continue;
    if (parameter.is_flag) {
      fail(ErrorKind::kValue, who, rule.name, ": ", parameter.key, " = ", hyper[i],
           " is a flag; use 0 or 1");
    }
    fail(ErrorKind::kValue, who, rule.name, ": ", parameter.key, " = ", hyper[i],
         " is out of range; use a value in [", parameter.minimum, ", ", parameter.maximum,
         parameter.is_open ? ")" : "]");
  }
  if (const char* problem = rule.check(hyper))
    fail(ErrorKind::kValue, who, rule.name, ": ", problem);
}

namespace cpu {

#define OUTBOARD_RULE(type, stem)           \
  template <>                               \
  RuleKernel resolve_kernel<rules::type>(); \
  template <>                               \
  MeasureKernel resolve_measure_kernel<rules::type>();
#include "outboard/rules.def"
#undef OUTBOARD_RULE

namespace {
template <class Rule>
MeasureKernel measure_kernel_of() {
  if constexpr (NeedsNorms<Rule>) return resolve_measure_kernel<Rule>();
  return nullptr;
}
}  // namespace

MeasureKernel measure_kernel(RuleId rule) {
  switch (rule) {
#define OUTBOARD_RULE(type, stem) \
  case RuleId::k##type:           \
    return measure_kernel_of<rules::type>();
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  }
  return nullptr;
}

RuleKernel rule_kernel(RuleId rule) {
  switch (rule) {
#define OUTBOARD_RULE(type, stem) \
  case RuleId::k##type:           \
    return resolve_kernel<rules::type>();
#include "outboard/rules.def"
#undef OUTBOARD_RULE
  }
  fail(ErrorKind::kValue, "rule_kernel", "unknown rule ", static_cast<int>(rule),
       "; use a value of the catalogue");
}

}  // namespace cpu
}  // namespace outboard
