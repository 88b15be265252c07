// The planner for Python: functions in torch.ops.outboard that take and give numbers and words by
// name. Translates only; names are those of the fields in include/outboard/plan.h.
#include <torch/library.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "offload/planning/machine.h"
#include "outboard/device.h"
#include "outboard/plan.h"
#include "python/translated.h"

namespace outboard {
namespace {

using Numbers = c10::Dict<std::string, double>;
using Words = c10::Dict<std::string, std::string>;

constexpr const char* kWho = "planner";
// An update's seconds per element are under its name with this in front.
const std::string kUpdatePrefix = "update ";

/// The value that `word` names among `values`. Throws Error(kValue) that lists them.
template <class Value, size_t kCount, class Name>
Value named(const char* what, const std::string& word, const std::array<Value, kCount>& values,
            Name name) {
  std::string known;
  for (const Value value : values) {
    if (name(value) == word) return value;
    known.append(known.empty() ? "" : ", ").append(name(value));
  }
  fail(ErrorKind::kValue, kWho, what, " is '", word, "'; give one of ", known);
}

DType dtype_named(const std::string& word) {
  return named("dtype", word, std::array{DType::kF32, DType::kBF16, DType::kF16},
               [](DType type) { return name_of(type); });
}

MasterFormat master_named(const std::string& word) {
  constexpr std::array kMasters = {MasterFormat::kWeight, MasterFormat::kSplit, MasterFormat::kF32,
                                   MasterFormat::kStochastic, MasterFormat::kSplit8};
  return named("master", word, kMasters, [](MasterFormat master) {
    return master == MasterFormat::kWeight   ? "weight"
           : master == MasterFormat::kSplit  ? "split"
           : master == MasterFormat::kSplit8 ? "split8"
           : master == MasterFormat::kF32    ? "fp32"
                                             : "stochastic";
  });
}

std::optional<Schedule> schedule_named(const std::string& word) {
  if (word == "auto") return std::nullopt;
  return named("schedule", word,
               std::array{Schedule::kAtStep, Schedule::kNextForward, Schedule::kInBackward},
               [](Schedule schedule) { return word_for(schedule); });
}

std::optional<Placement> placement_named(const std::string& word) {
  if (word == "auto") return std::nullopt;
  return named("placement", word,
               std::array{Placement::kResident, Placement::kHost, Placement::kStreamed},
               [](Placement placement) { return word_for(placement); });
}

/// What is no such number becomes 0, which the planner refuses where it matters.
int to_int(double value) { return value >= 0 && value <= 1e9 ? static_cast<int>(value) : 0; }

/// Where the numbers of a struct go, by name.
using Fields = std::map<std::string, double*>;

Fields fields_of(Machine& machine) {
  return {{"link_down", &machine.link_down},
          {"link_up", &machine.link_up},
          {"link_duplex", &machine.link_duplex},
          {"host_bandwidth", &machine.host_bandwidth},
          {"device_bandwidth", &machine.device_bandwidth},
          {"flops", &machine.flops}};
}

Numbers numbers_of(Machine machine) {
  Numbers numbers;
  for (const auto& [name, value] : fields_of(machine)) numbers.insert(name, *value);
  numbers.insert("threads", machine.threads);
  for (const UpdateSpeed& update : machine.updates) {
    numbers.insert(kUpdatePrefix + update.name, update.seconds_per_element);
  }
  return numbers;
}

Machine machine_of(const Numbers& numbers) {
  Machine machine;
  const Fields fields = fields_of(machine);
  for (const auto& entry : numbers) {
    if (const auto field = fields.find(entry.key()); field != fields.end()) {
      *field->second = entry.value();
    } else if (entry.key() == "threads") {
      machine.threads = to_int(entry.value());
    } else if (entry.key().starts_with(kUpdatePrefix)) {
      machine.updates.push_back({entry.key().substr(kUpdatePrefix.size()), entry.value()});
    } else {
      fail(ErrorKind::kValue, kWho, "a machine has no '", entry.key(),
           "'; give link_down, link_up, link_duplex, host_bandwidth, device_bandwidth, flops, "
           "threads and updates");
    }
  }
  return machine;
}

/// Takes `name` out of `numbers`; `fallback` if it is not there.
double take(Numbers& numbers, const char* name, double fallback) {
  const auto found = numbers.find(name);
  if (found == numbers.end()) return fallback;
  const double value = found->value();
  (void)numbers.erase(name);
  return value;
}

size_t take_bytes(Numbers& numbers, const char* name, size_t fallback) {
  const double value = take(numbers, name, -1);
  if (value >= 1e18) return kNoLimit;
  return value >= 0 ? static_cast<size_t>(value) : fallback;
}

/// Parameters all of one kind. Numbers and words that are not given keep their defaults.
PlanRequest request_of(const std::vector<int64_t>& elements, const Numbers& given,
                       const Words& words) {
  const auto word = [&](const char* name, const char* fallback) {
    const auto found = words.find(name);
    return found == words.end() ? std::string(fallback) : found->value();
  };
  Numbers numbers = given.copy();
  PlanRequest request;
  const RuleInfo& rule = rule_named(word("rule", "AdamW"));
  const std::string format = word("state_format", "fp32");
  const ParameterToPlan kind = {.type = dtype_named(word("dtype", "bfloat16")),
                                .master = master_named(word("master", "split")),
                                .state_bytes = state_bytes(rule.id, format)};
  for (const int64_t count : elements) {
    request.parameters.push_back(kind);
    request.parameters.back().elements = count < 0 ? 0 : static_cast<size_t>(count);
  }
  request.update = update_name(rule.name, format, kind.master);
  request.schedule = schedule_named(word("schedule", "auto"));
  request.placement = placement_named(word("placement", "auto"));
  request.forward_s = take(numbers, "forward_s", 0);
  request.backward_s = take(numbers, "backward_s", 0);
  request.accumulation_steps = to_int(take(numbers, "accumulation_steps", 1));
  request.needs_norm = take(numbers, "needs_norm", 1) != 0;
  request.redo_rate = take(numbers, "redo_rate", 0);
  request.offload_gradients = take(numbers, "offload_gradients", 1) != 0;
  request.is_attached = take(numbers, "is_attached", 0) != 0;
  request.min_offload_elements = take_bytes(numbers, "min_offload_elements", 4096);
  request.min_stream_elements = take_bytes(numbers, "min_stream_elements", 65536);
  request.device_state_bytes = take_bytes(numbers, "device_state_bytes", 0);
  request.device_bytes = take_bytes(numbers, "device_bytes", kNoLimit);
  request.host_bytes = take_bytes(numbers, "host_bytes", kNoLimit);
  if (!numbers.empty()) {
    fail(ErrorKind::kValue, kWho, "a request has no '", numbers.begin()->key(),
         "'; see include/outboard/plan.h for its names");
  }
  return request;
}

Numbers numbers_of(const PlanRequest& request, const Plan& plan) {
  Numbers numbers;
  const auto add = [&](const char* name, auto value) {
    numbers.insert(name, static_cast<double>(value));
  };
  add("iteration_s", plan.prediction.iteration_s);
  add("compute_s", plan.prediction.compute_s);
  add("exposed_s", plan.prediction.exposed_s);
  add("link_s", plan.prediction.link_s);
  add("host_memory_s", plan.prediction.host_memory_s);
  add("cpu_s", plan.prediction.cpu_s);
  add("device_s", plan.prediction.device_s);
  add("host_weights", plan.bytes.host_weights);
  add("host_masters", plan.bytes.host_masters);
  add("host_state", plan.bytes.host_state);
  add("host_speculation", plan.bytes.host_speculation);
  add("host_gradients", plan.bytes.host_gradients);
  add("host_accumulators", plan.bytes.host_accumulators);
  add("host_staging", plan.bytes.host_staging);
  add("device_state", plan.bytes.device_state);
  add("device_ring", plan.bytes.device_ring);
  add("device_gradients", plan.bytes.device_gradients);
  add("device_shadows", plan.bytes.device_shadows);
  add("host", plan.bytes.host());
  add("device", plan.bytes.device());
  add("is_speculative", plan.is_speculative);
  add("fits", plan.fits);
  std::array<double, 3> elements{};
  for (size_t i = 0; i < plan.placements.size(); ++i) {
    elements.at(static_cast<size_t>(plan.placements[i])) +=
        static_cast<double>(request.parameters[i].elements);
  }
  add("resident_elements", elements[static_cast<size_t>(Placement::kResident)]);
  add("host_elements", elements[static_cast<size_t>(Placement::kHost)]);
  add("streamed_elements", elements[static_cast<size_t>(Placement::kStreamed)]);
  return numbers;
}

/// (numbers by name, schedule and bound, placements, reasons)
using PlanForPython =
    std::tuple<Numbers, Words, std::vector<std::string>, std::vector<std::string>>;

/// The best plan; with `placements`, the one that has these and the request's schedule.
Plan plan_of(const PlanRequest& request, const Machine& machine,
             const std::vector<std::string>& placements) {
  if (placements.empty()) return make_plan(request, machine);
  if (!request.schedule) {
    fail(ErrorKind::kValue, kWho, "placements are given and the schedule is 'auto'; give the ",
         "schedule that goes with them");
  }
  std::vector<Placement> named;
  for (const std::string& word : placements) {
    named.push_back(placement_named(word).value_or(Placement::kHost));
  }
  return evaluate(request, machine, std::move(named), *request.schedule);
}

PlanForPython plan(const std::vector<int64_t>& elements, const Numbers& request_numbers,
                   const Words& words, const Numbers& machine,
                   const std::vector<std::string>& placements) {
  return translated([&] {
    const PlanRequest request = request_of(elements, request_numbers, words);
    const Plan plan = plan_of(request, machine_of(machine), placements);
    Words choices;
    choices.insert("schedule", std::string(word_for(plan.schedule)));
    choices.insert("bound", std::string(word_for(plan.bound)));
    std::vector<std::string> chosen;
    for (const Placement placement : plan.placements) chosen.emplace_back(word_for(placement));
    return PlanForPython(numbers_of(request, plan), choices, chosen, plan.reasons);
  });
}

/// The machine, forward_s and backward_s with which the model gives what was measured.
std::tuple<Numbers, double, double> corrected_machine(const std::vector<int64_t>& elements,
                                                      const Numbers& request_numbers,
                                                      const Words& words, const Numbers& machine,
                                                      const std::vector<std::string>& placements,
                                                      const Numbers& measured) {
  return translated([&] {
    const PlanRequest request = request_of(elements, request_numbers, words);
    const Machine before = machine_of(machine);
    Numbers numbers = measured.copy();
    const CorrectedModel model =
        corrected(request, before, plan_of(request, before, placements),
                  {.iteration_s = take(numbers, "iteration_s", 0),
                   .forward_backward_s = take(numbers, "forward_backward_s", 0),
                   .update_s = take(numbers, "update_s", 0)});
    return std::tuple(numbers_of(model.machine), model.request.forward_s, model.request.backward_s);
  });
}

/// Of CUDA device `device`; -1: none. `simulate` as for TensorEngine: the fake device instead.
Numbers measured_machine(int64_t device, const std::vector<int64_t>& simulate, int64_t threads,
                         const std::string& rule, const std::vector<std::string>& state_formats,
                         const std::string& dtype, const std::string& master) {
  return translated([&] {
    std::shared_ptr<Device> measured;
    if (simulate.size() == 3) {
      measured = make_simulated_device({.seed = static_cast<uint64_t>(simulate[0]),
                                        .max_delay_microseconds = static_cast<int>(simulate[1])});
    } else if (device >= 0) {
      measured = make_cuda_device(static_cast<int>(device));
    }
    MachineOptions options{.threads = static_cast<int>(threads)};
    for (const std::string& format : state_formats) {
      options.updates.push_back({.rule = rule_named(rule).id,
                                 .state_format = format,
                                 .type = dtype_named(dtype),
                                 .master = master_named(master)});
    }
    return numbers_of(measure_machine(measured, options));
  });
}

std::tuple<double, double> compute_times(double parameters, double tokens, double flops,
                                         bool is_recomputed) {
  return translated([&] {
    const ComputeTime time =
        compute_time(parameters, tokens, flops,
                     is_recomputed ? Recomputation::kActivations : Recomputation::kNone);
    return std::tuple(time.forward_s, time.backward_s);
  });
}

double state_bytes_of(const std::string& rule, const std::string& state_format) {
  return translated([&] { return state_bytes(rule_named(rule).id, state_format); });
}

int64_t threads_of_update(int64_t threads) {
  return translated([&] { return int64_t{update_threads(static_cast<int>(threads))}; });
}

}  // namespace
}  // namespace outboard

TORCH_LIBRARY_FRAGMENT(outboard, m) {
  m.def("plan", &outboard::plan);
  m.def("corrected_machine", &outboard::corrected_machine);
  m.def("measure_machine", &outboard::measured_machine);
  m.def("compute_time", &outboard::compute_times);
  m.def("state_bytes", &outboard::state_bytes_of);
  m.def("update_threads", &outboard::threads_of_update);
}
