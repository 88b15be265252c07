// What a request has to be, and what follows from one parameter alone. Neither seconds nor totals.
#include <cmath>

#include "offload/planning/cost_model.h"
#include "offload/state_store.h"
#include "outboard/error.h"

namespace outboard {
namespace {

void check_rate(const char* name, double rate, const char* remedy) {
  if (std::isfinite(rate) && rate > 0) return;
  fail(ErrorKind::kValue, "planner", "the machine's ", name, " is ", rate, "; ", remedy);
}

void check_seconds(const char* name, double seconds) {
  if (std::isfinite(seconds) && seconds >= 0) return;
  fail(ErrorKind::kValue, "planner", name, " is ", seconds, "; give seconds, 0 or more");
}

}  // namespace

ParameterToPlan parameter_to_plan(const ParameterSpec& spec) {
  ParameterToPlan parameter = {
      .elements = spec.elements, .type = spec.type, .master = spec.master_format, .state_bytes = 0};
  if (!spec.rule || spec.elements == 0) return parameter;
  const RuleInfo& rule = rule_info(*spec.rule);
  size_t bytes = 0;
  for (size_t i = 0; i < rule.states.size(); ++i) {
    if (!needs_state(rule, i, spec.hyper)) continue;
    const size_t elements = state_elements(spec, i);
    bytes += spec.formats[i].code_bytes(elements) +
             spec.formats[i].scale_count(elements) * sizeof(float);
  }
  parameter.state_bytes = static_cast<double>(bytes) / static_cast<double>(spec.elements);
  return parameter;
}

double update_traffic(const ParameterToPlan& parameter) {
  const auto weight = static_cast<double>(bytes_of(parameter.type));
  const double gradient = weight;
  double full_precision = 2 * weight;
  switch (parameter.master) {
    case MasterFormat::kWeight:
    case MasterFormat::kStochastic:
      break;
    case MasterFormat::kSplit:
    case MasterFormat::kSplit8:
      full_precision += 2 * static_cast<double>(bytes_of(parameter.master));
      break;
    case MasterFormat::kF32:  // read and written, and its image written
      full_precision = 8 + weight;
      break;
  }
  return gradient + full_precision + 2 * parameter.state_bytes;
}

double stream_bytes(const ParameterToPlan& parameter) {
  return static_cast<double>(bytes_of(parameter.master)) + parameter.state_bytes;
}

void check_request(const PlanRequest& request, const Machine& machine) {
  if (request.parameters.empty()) {
    fail(ErrorKind::kValue, "planner", "there are 0 parameters; give at least one");
  }
  for (const ParameterToPlan& parameter : request.parameters) {
    if (parameter.elements == 0 || !(parameter.state_bytes >= 0)) {
      fail(ErrorKind::kValue, "planner", "a parameter has ", parameter.elements, " elements and ",
           parameter.state_bytes, " bytes of state each; give at least 1 and 0");
    }
  }
  check_seconds("forward_s", request.forward_s);
  check_seconds("backward_s", request.backward_s);
  if (request.accumulation_steps < 1 || !(request.redo_rate >= 0 && request.redo_rate <= 1)) {
    fail(ErrorKind::kValue, "planner", "accumulation_steps is ", request.accumulation_steps,
         " and redo_rate ", request.redo_rate, "; give 1 or more, and a share from 0 to 1");
  }
  constexpr const char* kRemedy = "measure the machine, or give bytes per second";
  check_rate("link_down", machine.link_down, kRemedy);
  check_rate("link_up", machine.link_up, kRemedy);
  check_rate("link_duplex", machine.link_duplex, kRemedy);
  check_rate("host_bandwidth", machine.host_bandwidth, kRemedy);
}

}  // namespace outboard
