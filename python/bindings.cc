// What Python sees: torch.classes.outboard.TensorEngine and a few look-up functions in
// torch.ops.outboard. Translates types and errors; holds no logic.
#include <torch/custom_class.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

#include "cpu_kernels/targets.h"
#include "offload/torch/tensor_engine.h"
#include "outboard/error.h"
#include "python/translated.h"

namespace outboard {
namespace {

using StateDict = c10::Dict<std::string, at::Tensor>;

StateDict to_dict(const TensorMap& map) {
  StateDict dict;
  for (const auto& [key, value] : map) dict.insert(key, value);
  return dict;
}

TensorMap to_map(const StateDict& dict) {
  TensorMap map;
  for (const auto& entry : dict) map.emplace_back(entry.key(), entry.value());
  return map;
}

std::vector<FormatWish> wishes(const std::vector<std::string>& names,
                               const std::vector<int64_t>& block_sizes) {
  std::vector<FormatWish> result;
  for (size_t i = 0; i < names.size(); ++i) {
    result.push_back({names[i], static_cast<size_t>(block_sizes.at(i))});
  }
  return result;
}

std::vector<Placement> placements_named(const std::vector<std::string>& names) {
  std::vector<Placement> placements;
  for (const std::string& name : names) {
    if (name != "host" && name != "streamed" && name != "resident") {
      fail(ErrorKind::kValue, "outboard", "placement is \"", name,
           "\"; give \"host\", \"streamed\" or \"resident\"");
    }
    placements.push_back(name == "host"       ? Placement::kHost
                         : name == "streamed" ? Placement::kStreamed
                                              : Placement::kResident);
  }
  return placements;
}

Schedule schedule_named(const std::string& name) {
  if (name == "at_step") return Schedule::kAtStep;
  if (name == "next_forward") return Schedule::kNextForward;
  if (name == "in_backward") return Schedule::kInBackward;
  fail(ErrorKind::kValue, "outboard", "schedule is \"", name,
       "\"; give \"at_step\", \"next_forward\" or \"in_backward\"");
}

// `places`: group and index of each value.
std::vector<HyperTensor> hyper_tensors(const std::vector<int64_t>& places,
                                       const std::vector<at::Tensor>& values) {
  std::vector<HyperTensor> result;
  for (size_t i = 0; i < values.size(); ++i) {
    result.push_back({.group = static_cast<size_t>(places.at(2 * i)),
                      .index = static_cast<size_t>(places.at(2 * i + 1)),
                      .value = values[i]});
  }
  return result;
}

class TensorEngineHolder : public torch::CustomClassHolder {
 public:
  TensorEngineHolder(bool offload_gradients, bool skip_nonfinite, int64_t threads, bool pin_memory,
                     int64_t seed, int64_t chunk_elements, bool poison_in_flight,
                     const std::vector<int64_t>& simulate) {
    EngineOptions options{.offload_gradients = offload_gradients,
                          .skip_nonfinite = skip_nonfinite,
                          .threads = static_cast<int>(threads),
                          .pin_memory = pin_memory,
                          .seed = static_cast<uint64_t>(seed),
                          .poison_in_flight = poison_in_flight};
    if (chunk_elements > 0) options.chunk_elements = static_cast<size_t>(chunk_elements);
    std::optional<SimulatedDeviceOptions> simulated;
    if (!simulate.empty()) {
      TORCH_CHECK_VALUE(simulate.size() == 3, "[outboard] simulate has ", simulate.size(),
                        " entries; give [seed, max_delay_microseconds, poison]");
      simulated = {.seed = static_cast<uint64_t>(simulate[0]),
                   .max_delay_microseconds = static_cast<int>(simulate[1]),
                   .poison_targets = simulate[2] != 0};
    }
    engine_ = std::make_unique<TensorEngine>(options, simulated);
  }

  int64_t add_parameters(std::vector<at::Tensor> tensors, std::vector<std::string> names,
                         const std::vector<std::string>& placements, std::vector<std::string> rules,
                         std::vector<double> hyper, const std::vector<std::string>& state_formats,
                         const std::vector<int64_t>& block_sizes, int64_t min_quantized_elements,
                         std::string master) {
    return translated([&] {
      return static_cast<int64_t>(engine_->add_parameters(
          {.tensors = std::move(tensors),
           .names = std::move(names),
           .placements = placements_named(placements),
           .rules = std::move(rules),
           .hyper = std::move(hyper),
           .state_formats = wishes(state_formats, block_sizes),
           .min_quantized_elements = static_cast<size_t>(min_quantized_elements),
           .master = std::move(master)}));
    });
  }

  bool begin_step(std::vector<std::vector<double>> hyper, std::vector<int64_t> group_of,
                  double max_grad_norm, const std::optional<at::Tensor>& grad_scale,
                  const std::optional<at::Tensor>& found_inf) {
    return translated([&] {
      return engine_->begin_step(std::move(hyper), {group_of.begin(), group_of.end()},
                                 max_grad_norm, grad_scale.value_or(at::Tensor()),
                                 found_inf.value_or(at::Tensor()));
    });
  }

  void make_capturable() {
    translated([&] { engine_->make_capturable(); });
  }
  void enqueue_step(std::vector<std::vector<double>> hyper, const std::vector<int64_t>& group_of,
                    const std::vector<int64_t>& places, const std::vector<at::Tensor>& values) {
    translated([&] {
      engine_->enqueue_step(std::move(hyper), {group_of.begin(), group_of.end()},
                            hyper_tensors(places, values));
    });
  }
  void update_hyper(std::vector<std::vector<double>> hyper, const std::vector<int64_t>& group_of,
                    const std::vector<int64_t>& places, const std::vector<at::Tensor>& values) {
    translated([&] {
      engine_->update_hyper(std::move(hyper), {group_of.begin(), group_of.end()},
                            hyper_tensors(places, values));
    });
  }

  void finish_step() {
    translated([&] { engine_->finish_step(); });
  }

  std::vector<int64_t> active() const {
    const auto active = engine_->active_parameters();
    return {active.begin(), active.end()};
  }

  at::Tensor host_gradient(int64_t parameter) {
    return translated([&] { return engine_->host_gradient(parameter); });
  }
  at::Tensor host_weight(int64_t parameter) {
    return translated([&] { return engine_->host_weight(parameter); });
  }
  double gradient_scale() const {
    return translated([&] { return engine_->gradient_scale(); });
  }
  void return_weight(int64_t parameter) {
    translated([&] { engine_->return_weight(parameter); });
  }
  double gradient_norm(const std::optional<at::Tensor>& grad_scale) {
    return translated([&] { return engine_->gradient_norm(grad_scale.value_or(at::Tensor())); });
  }
  void discard_gradients() {
    translated([&] { engine_->discard_gradients(); });
  }
  void wait_weights(const std::vector<int64_t>& parameters) {
    const std::vector<size_t> indices(parameters.begin(), parameters.end());
    translated([&] { engine_->wait_weights(indices); });
  }
  bool is_updating() const { return engine_->is_updating(); }
  void set_use_order(const std::vector<int64_t>& parameters) {
    const std::vector<size_t> indices(parameters.begin(), parameters.end());
    translated([&] { engine_->set_use_order(indices); });
  }
  void set_schedule(const std::string& name) {
    translated([&] { engine_->set_schedule(schedule_named(name)); });
  }
  void announce_step(std::vector<std::vector<double>> hyper, const std::vector<int64_t>& group_of,
                     double max_grad_norm) {
    translated([&] {
      engine_->announce_step(std::move(hyper), {group_of.begin(), group_of.end()}, max_grad_norm);
    });
  }
  void set_accumulation_steps(int64_t backwards) {
    engine_->set_accumulation_steps(static_cast<int>(backwards));
  }
  void start_trace() {
    translated([&] { engine_->start_trace(); });
  }
  void stop_trace() {
    translated([&] { spans_ = engine_->stop_trace(); });
  }
  // Lanes, names, begins, ends, bytes of what stop_trace() has found.
  std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>,
             std::vector<double>, std::vector<int64_t>>
  take_trace() {
    std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>,
               std::vector<double>, std::vector<int64_t>>
        lists;
    for (TraceSpan& span : std::exchange(spans_, {})) {
      std::get<0>(lists).push_back(std::move(span.lane));
      std::get<1>(lists).push_back(std::move(span.name));
      std::get<2>(lists).push_back(span.begin);
      std::get<3>(lists).push_back(span.end);
      std::get<4>(lists).push_back(static_cast<int64_t>(span.bytes));
    }
    return lists;
  }
  void set_accumulating(bool is_accumulating) { engine_->set_accumulating(is_accumulating); }
  void synchronize() {
    translated([&] { engine_->synchronize(); });
  }
  void refresh_hooks() {
    translated([&] { engine_->refresh_hooks(); });
  }
  StateDict state(int64_t parameter, bool is_exact) {
    const StateLayout layout = is_exact ? StateLayout::kExact : StateLayout::kDecoded;
    return translated([&] { return to_dict(engine_->state(parameter, layout)); });
  }
  void convert_states(const std::vector<int64_t>& parameters,
                      const std::vector<std::string>& state_formats,
                      const std::vector<int64_t>& block_sizes, int64_t min_quantized_elements) {
    translated([&] {
      engine_->convert_states({parameters.begin(), parameters.end()},
                              wishes(state_formats, block_sizes),
                              static_cast<size_t>(min_quantized_elements));
    });
  }
  std::string state_format(int64_t parameter) const { return engine_->state_format(parameter); }
  void load_states(std::vector<int64_t> parameters, std::vector<StateDict> states) {
    std::vector<TensorMap> maps;
    for (const StateDict& state : states) maps.push_back(to_map(state));
    translated([&] { engine_->load_states({parameters.begin(), parameters.end()}, maps); });
  }
  void reset_state(int64_t parameter) {
    translated([&] { engine_->reset_state(parameter); });
  }
  void set_placements(const std::vector<int64_t>& parameters,
                      const std::vector<std::string>& placements) {
    translated([&] {
      const std::vector<Placement> named = placements_named(placements);
      std::vector<PlacementChange> changes;
      for (size_t i = 0; i < parameters.size(); ++i) {
        changes.push_back({static_cast<size_t>(parameters[i]), named.at(i)});
      }
      engine_->set_placements(changes);
    });
  }
  std::string placement(int64_t parameter) const { return engine_->placement(parameter); }
  std::string master_format(int64_t parameter) const { return engine_->master_format(parameter); }
  std::vector<std::string> warnings() { return engine_->take_warnings(); }

  c10::Dict<std::string, double> stats() const {
    return translated([&] {
      const MemoryStats memory = engine_->memory();
      const StepStats step = engine_->stats();
      c10::Dict<std::string, double> dict;
      const auto add = [&](const char* key, auto value) {
        dict.insert(key, static_cast<double>(value));
      };
      add("host_weights", memory.host_weights);
      add("host_masters", memory.host_masters);
      add("host_state", memory.host_state);
      add("host_gradients", memory.host_gradients);
      add("host_accumulators", memory.host_accumulators);
      add("host_staging", memory.host_staging);
      add("host_spare", memory.host_spare);
      add("host_pinned", memory.host_pinned);
      add("device_state", memory.device_state);
      add("device_workspace", memory.device_workspace);
      add("waiting_for_gradients", step.waiting_for_gradients);
      add("updating", step.updating);
      add("returning", step.returning);
      add("exposed", step.exposed);
      add("in_step", step.in_step);
      add("gradient_norm", step.gradient_norm);
      add("clip_factor", step.clip_factor);
      add("steps", step.steps);
      add("skipped_steps", step.skipped_steps);
      add("early_updates", step.early_updates);
      add("dropped_updates", step.dropped_updates);
      add("resent_gradients", step.resent_gradients);
      return dict;
    });
  }

 private:
  std::unique_ptr<TensorEngine> engine_;
  std::vector<TraceSpan> spans_;
};

std::vector<std::string> rules() {
  std::vector<std::string> names;
  for (size_t i = 0; i < kRuleCount; ++i) {
    names.emplace_back(rule_info(static_cast<RuleId>(i)).name);
  }
  return names;
}

std::vector<std::string> hyper_parameters(const std::string& rule) {
  return translated([&] {
    std::vector<std::string> keys;
    for (const auto& hyper : rule_named(rule).hyper_parameters) keys.emplace_back(hyper.key);
    return keys;
  });
}

std::vector<double> hyper_defaults(const std::string& rule) {
  return translated([&] {
    std::vector<double> values;
    for (const auto& hyper : rule_named(rule).hyper_parameters)
      values.push_back(hyper.default_value);
    return values;
  });
}

std::vector<std::string> state_keys(const std::string& rule) {
  return translated([&] {
    std::vector<std::string> keys;
    for (const StateInfo& state : rule_named(rule).states) keys.emplace_back(state.key);
    return keys;
  });
}

bool needs_whole(const std::string& rule) {
  return translated([&] { return rule_named(rule).needs_whole(); });
}

std::vector<std::string> state_formats() {
  const auto names = state_format_names();
  return {names.begin(), names.end()};
}

void check_state_format(const std::string& name, int64_t block_size) {
  translated([&] { (void)state_formats_named(name, static_cast<size_t>(block_size)); });
}

c10::Dict<std::string, std::string> build_info() {
  c10::Dict<std::string, std::string> info;
  info.insert("version", OUTBOARD_VERSION);
  info.insert("cuda", OUTBOARD_CUDA_VERSION);
  info.insert("simd_target", cpu::chosen_target());
  return info;
}

}  // namespace
}  // namespace outboard

TORCH_LIBRARY(outboard, m) {
  using Holder = outboard::TensorEngineHolder;
  m.class_<Holder>("TensorEngine")
      .def(torch::init<bool, bool, int64_t, bool, int64_t, int64_t, bool,
                       const std::vector<int64_t>&>())
      .def("add_parameters", &Holder::add_parameters)
      .def("begin_step", &Holder::begin_step)
      .def("make_capturable", &Holder::make_capturable)
      .def("enqueue_step", &Holder::enqueue_step)
      .def("update_hyper", &Holder::update_hyper)
      .def("finish_step", &Holder::finish_step)
      .def("active", &Holder::active)
      .def("host_gradient", &Holder::host_gradient)
      .def("host_weight", &Holder::host_weight)
      .def("gradient_scale", &Holder::gradient_scale)
      .def("return_weight", &Holder::return_weight)
      .def("gradient_norm", &Holder::gradient_norm)
      .def("discard_gradients", &Holder::discard_gradients)
      .def("wait_weights", &Holder::wait_weights)
      .def("is_updating", &Holder::is_updating)
      .def("set_use_order", &Holder::set_use_order)
      .def("set_schedule", &Holder::set_schedule)
      .def("announce_step", &Holder::announce_step)
      .def("set_accumulation_steps", &Holder::set_accumulation_steps)
      .def("start_trace", &Holder::start_trace)
      .def("stop_trace", &Holder::stop_trace)
      .def("take_trace", &Holder::take_trace)
      .def("set_accumulating", &Holder::set_accumulating)
      .def("synchronize", &Holder::synchronize)
      .def("refresh_hooks", &Holder::refresh_hooks)
      .def("state", &Holder::state)
      .def("load_states", &Holder::load_states)
      .def("convert_states", &Holder::convert_states)
      .def("state_format", &Holder::state_format)
      .def("reset_state", &Holder::reset_state)
      .def("set_placements", &Holder::set_placements)
      .def("placement", &Holder::placement)
      .def("master_format", &Holder::master_format)
      .def("warnings", &Holder::warnings)
      .def("stats", &Holder::stats);
  m.def("rules", &outboard::rules);
  m.def("hyper_parameters", &outboard::hyper_parameters);
  m.def("hyper_defaults", &outboard::hyper_defaults);
  m.def("state_keys", &outboard::state_keys);
  m.def("needs_whole", &outboard::needs_whole);
  m.def("is_matrix", &outboard::is_matrix);
  m.def("state_formats", &outboard::state_formats);
  m.def("check_state_format", &outboard::check_state_format);
  m.def("build_info", &outboard::build_info);
}
