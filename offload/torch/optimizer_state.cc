// What CPUOffloadOptimizer shows, saves and loads of its state.
#include <ATen/ATen.h>
#include <torch/serialize/archive.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "offload/checkpoint/atomic_file.h"
#include "offload/checkpoint/file_mapping.h"
#include "offload/torch/hyper.h"
#include "offload/torch/optimizer_impl.h"
#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {
namespace {

using torch::optim::OptimizerOptions;

constexpr const char* kArchiveKey = "outboard_checkpoint";
// What a checkpoint may have beside 8 fp32 tensors per parameter.
constexpr uint64_t kMostOtherBytes = uint64_t{64} << 20;
constexpr uint64_t kMostBytesPerElement = 32;

PickledValue text(std::string_view value) { return PickledValue::text(value); }

std::string class_name(RuleId rule) {
  switch (rule) {
    case RuleId::kAdamW:
    case RuleId::kAdamWFactored:
      return "torch.optim.adamw.AdamW";
    case RuleId::kAdam:
      return "torch.optim.adam.Adam";
    case RuleId::kSGD:
      return "torch.optim.sgd.SGD";
    case RuleId::kLion:
      return "outboard.optim.Lion";
    case RuleId::kAdagrad:
      return "torch.optim.adagrad.Adagrad";
    case RuleId::kRMSprop:
      return "torch.optim.rmsprop.RMSprop";
    case RuleId::kAdEMAMix:
      return "outboard.optim.AdEMAMix";
    case RuleId::kLAMB:
      return "outboard.optim.LAMB";
    case RuleId::kLARS:
      return "outboard.optim.LARS";
  }
  return std::string(rule_info(rule).name);
}

// The keys of Python's classes that choose among implementations or have no C++ counterpart.
PickledDict other_options(RuleId rule) {
  if (class_name(rule).starts_with("outboard.")) return {};
  const bool is_adam = rule == RuleId::kAdamW || rule == RuleId::kAdam;
  const PickledValue none;
  const PickledValue off(false);
  PickledDict options{{text("foreach"), none}};
  if (is_adam || rule == RuleId::kRMSprop) options.emplace_back(text("capturable"), off);
  options.emplace_back(text("differentiable"), off);
  if (rule != RuleId::kRMSprop) options.emplace_back(text("fused"), none);
  if (is_adam) {
    options.emplace_back(text("decoupled_weight_decay"), PickledValue(rule == RuleId::kAdamW));
  }
  return options;
}

// {"lr": 0.1, "betas": (0.9, 0.99), ...}; "betas.0" is item 0 of the tuple.
PickledDict native_options(RuleId rule, const std::vector<double>& hyper) {
  PickledDict options;
  PickledItems items;
  const auto keys = rule_info(rule).hyper_parameters;
  for (size_t i = 0; i < keys.size(); ++i) {
    const PickledValue value =
        keys[i].is_flag ? PickledValue(hyper[i] != 0) : PickledValue(hyper[i]);
    const size_t dot = keys[i].key.find('.');
    if (dot == std::string_view::npos) {
      options.emplace_back(text(keys[i].key), value);
      continue;
    }
    if (keys[i].key.substr(dot) == ".0") items.clear();
    items.push_back(value);
    const bool is_last =
        i + 1 == keys.size() || !keys[i + 1].key.starts_with(keys[i].key.substr(0, dot + 1));
    if (is_last) options.emplace_back(text(keys[i].key.substr(0, dot)), PickledValue::tuple(items));
  }
  for (auto& other : other_options(rule)) options.push_back(std::move(other));
  return options;
}

const PickledValue* find(const PickledDict& options, std::string_view key) {
  for (const auto& [name, value] : options) {
    const auto* found = name.as<std::string>();
    if (found != nullptr && *found == key) return &value;
  }
  return nullptr;
}

// Values that the saved group lacks are the current ones.
std::vector<double> merged_hyper(RuleId rule, const PickledDict& saved, std::vector<double> hyper) {
  const auto keys = rule_info(rule).hyper_parameters;
  for (size_t i = 0; i < keys.size(); ++i) {
    const size_t dot = keys[i].key.find('.');
    const PickledValue* value = find(saved, keys[i].key.substr(0, dot));
    if (value != nullptr && dot != std::string_view::npos) {
      const auto item = static_cast<size_t>(keys[i].key[dot + 1] - '0');
      const PickledItems* items =
          value->as_tuple() != nullptr ? value->as_tuple() : value->as_list();
      value = items != nullptr && item < items->size() ? &(*items)[item] : nullptr;
    }
    if (value == nullptr) continue;
    // A learning rate that is a tensor keeps the value it has here.
    if (value->is_number()) hyper[i] = value->to_double();
  }
  check_hyper(rule_info(rule), hyper, kWho);
  return hyper;
}

// ---- Options of other optimizers, known only by what they write into an archive -----------------

PickledValue pickled(const c10::IValue& value) {
  if (value.isBool()) return PickledValue(value.toBool());
  if (value.isInt()) return PickledValue(value.toInt());
  if (value.isDouble()) return PickledValue(value.toDouble());
  if (value.isString()) return text(value.toStringRef());
  if (!value.isTuple()) return {};
  PickledItems items;
  for (const c10::IValue& item : value.toTupleRef().elements()) items.push_back(pickled(item));
  return PickledValue::tuple(std::move(items));
}

// `example` says as what the struct holds the value.
c10::IValue plain(const PickledValue& value, const c10::IValue& example) {
  if (example.isBool() && value.is_number()) return value.to_double() != 0;
  if (example.isInt() && value.as<int64_t>() != nullptr) return *value.as<int64_t>();
  if (example.isDouble() && value.is_number()) return value.to_double();
  return example;
}

std::map<std::string, c10::IValue> values_of(const OptimizerOptions& options) {
  torch::serialize::OutputArchive written;
  options.serialize(written);
  std::stringstream bytes;
  written.save_to(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(bytes);
  std::map<std::string, c10::IValue> values;
  for (const std::string& key : archive.keys()) archive.read(key, values[key]);
  return values;
}

void merge_values(OptimizerOptions& options, const PickledDict& saved) {
  torch::serialize::OutputArchive written;
  for (const auto& [key, value] : values_of(options)) {
    const PickledValue* found = find(saved, key);
    written.write(key, found != nullptr ? plain(*found, value) : value);
  }
  std::stringstream bytes;
  written.save_to(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(bytes);
  options.serialize(archive);
}

}  // namespace

TensorMap CPUOffloadOptimizer::Impl::state(size_t parameter, StateLayout layout) {
  return rule ? engine.state(parameter, layout) : generic->state(parameter);
}

Snapshot CPUOffloadOptimizer::Impl::snapshot(const ParamGroups& groups, StateLayout layout) {
  update_groups(groups);
  engine.synchronize();
  Snapshot result{.is_own = true,
                  .seed = static_cast<int64_t>(options.seed),
                  .optimizer_class = rule ? class_name(*rule) : "torch::optim",
                  .state_format = options.state_format};
  for (const auto& group : groups) {
    Snapshot::Group saved{.parameters = group.params().size()};
    if (rule) {
      saved.options = native_options(*rule, hyper_of(group.options()));
    } else {
      for (const auto& [key, value] : values_of(group.options())) {
        saved.options.emplace_back(text(key), pickled(value));
      }
    }
    result.groups.push_back(std::move(saved));
    for (const at::Tensor& tensor : group.params()) {
      const size_t index = index_of(tensor);
      result.states.push_back(state(index, layout));
      result.masters.push_back(rule ? engine.master_format(index) : "fp32");
    }
  }
  return result;
}

void CPUOffloadOptimizer::Impl::check_saved_kind(const TensorMap& state, size_t parameter) const {
  const auto keeps = [](RuleId id, std::string_view key) {
    return std::ranges::count(rule_info(id).states, key, &StateInfo::key) > 0;
  };
  const RuleId own = parameter_rules[parameter];
  const RuleId other = own == RuleId::kAdamWFactored ? RuleId::kAdamW : RuleId::kAdamWFactored;
  for (const auto& [key, value] : state) {
    const std::string_view name = std::string_view(key).substr(0, key.find('.'));
    if (keeps(own, name) || !keeps(other, name)) continue;
    fail(ErrorKind::kValue, kWho, "the saved state of ", parameter_names[parameter], " has \"", key,
         "\", which ", rule_info(own).name, " does not keep; make the optimizer with the ",
         "factored_second_moment that was saved. Nothing was changed");
  }
}

void CPUOffloadOptimizer::Impl::check_saved(const Snapshot& saved,
                                            const ParamGroups& groups) const {
  const auto refuse = [](const auto&... parts) {
    fail(ErrorKind::kValue, kWho, parts...,
         "; load a checkpoint saved from the same parameters. Nothing was changed");
  };
  if (saved.groups.size() != groups.size()) {
    refuse("the checkpoint has ", saved.groups.size(), " parameter groups, not ", groups.size());
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const size_t theirs = saved.groups[i].parameters;
    if (theirs == groups[i].params().size()) continue;
    refuse("parameter group ", i, " of the checkpoint has ", theirs,
           " parameters, the optimizer's has ", groups[i].params().size());
  }
  if (rule && saved.is_own && saved.optimizer_class != class_name(*rule)) {
    refuse("the checkpoint is of ", saved.optimizer_class, ", the optimizer is ",
           class_name(*rule));
  }
  const bool counts_steps = rule == RuleId::kAdamW || rule == RuleId::kAdam ||
                            rule == RuleId::kAdagrad || rule == RuleId::kAdEMAMix ||
                            rule == RuleId::kLAMB;
  for (size_t i = 0; i < saved.states.size() && counts_steps; ++i) {
    const TensorMap& state = saved.states[i];
    const bool has_step =
        std::ranges::any_of(state, [](const auto& e) { return e.first == "step"; });
    if (!state.empty() && !has_step) refuse("the state of parameter ", i, " lacks \"step\"");
  }
  if (rule != RuleId::kAdamW) return;
  auto state = saved.states.begin();
  for (const auto& group : groups) {
    for (const at::Tensor& tensor : group.params()) check_saved_kind(*state++, index_of(tensor));
  }
}

std::vector<std::unique_ptr<OptimizerOptions>> CPUOffloadOptimizer::Impl::saved_options(
    const Snapshot& saved, const ParamGroups& groups) const {
  std::vector<std::unique_ptr<OptimizerOptions>> result;
  for (size_t i = 0; i < groups.size(); ++i) {
    const PickledDict& theirs = saved.groups[i].options;
    std::unique_ptr<OptimizerOptions> merged = groups[i].options().clone();
    if (rule) {
      const PickledValue* decoupled = find(theirs, "decoupled_weight_decay");
      if (decoupled != nullptr && (*rule == RuleId::kAdamW || *rule == RuleId::kAdam) &&
          (decoupled->to_double() != 0) != (*rule == RuleId::kAdamW)) {
        fail(ErrorKind::kValue, kWho, "parameter group ", i, " of the checkpoint is of ",
             *rule == RuleId::kAdamW ? "Adam" : "AdamW", ", the optimizer is ",
             rule_info(*rule).name, "; make the optimizer that was saved. Nothing was changed");
      }
      set_hyper(*merged, merged_hyper(rule_of_matrices(), theirs, hyper_of(*merged)));
    } else {
      merge_values(*merged, theirs);
    }
    result.push_back(std::move(merged));
  }
  return result;
}

void CPUOffloadOptimizer::Impl::restore(const Snapshot& saved, ParamGroups& groups) {
  update_groups(groups);
  check_saved(saved, groups);
  auto merged = saved_options(saved, groups);
  std::vector<size_t> indices_in_order;
  std::vector<size_t> group_of;
  for (size_t number = 0; number < groups.size(); ++number) {
    for (const at::Tensor& tensor : groups[number].params()) {
      indices_in_order.push_back(index_of(tensor));
      group_of.push_back(number);
    }
  }
  std::vector<TensorMap> states = saved.states;
  if (!saved.is_own) {
    // The dict went through torch, which may have trained on: its masters are stale.
    for (TensorMap& state : states) {
      std::erase_if(state, [](const auto& entry) { return entry.first == "master"; });
    }
  }
  if (rule) {
    engine.load_states(indices_in_order, states);
  } else {
    for (size_t i = 0; i < states.size(); ++i) {
      generic->check(indices_in_order[i], states[i], *merged[group_of[i]]);
    }
    engine.synchronize();
    for (size_t i = 0; i < states.size(); ++i) {
      generic->load(indices_in_order[i], states[i], *merged[group_of[i]]);
    }
  }
  for (size_t i = 0; i < groups.size(); ++i) groups[i].set_options(std::move(merged[i]));
  if (saved.is_own && saved.seed != static_cast<int64_t>(options.seed)) {
    TORCH_WARN("[", kWho, "] the state was saved with seed ", saved.seed, ", this optimizer has ",
               options.seed, "; stochastic rounding goes on differently. Make it with the saved ",
               "seed to resume bit by bit");
  }
}

std::map<std::string, torch::Tensor> CPUOffloadOptimizer::state_of(const torch::Tensor& parameter) {
  const size_t index = impl_->index_of(parameter);
  impl_->engine.synchronize();
  const TensorMap state = impl_->state(index, StateLayout::kDecoded);
  return {state.begin(), state.end()};
}

void CPUOffloadOptimizer::save(torch::serialize::OutputArchive& archive) const {
  std::string bytes;
  write_snapshot(
      impl_->snapshot(param_groups_, StateLayout::kExact),
      [&](const void* data, size_t count) { bytes.append(static_cast<const char*>(data), count); });
  const at::Tensor tensor = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
  std::copy(bytes.begin(), bytes.end(), static_cast<char*>(tensor.data_ptr()));
  archive.write(kArchiveKey, tensor, /*is_buffer=*/true);
}

void CPUOffloadOptimizer::load(torch::serialize::InputArchive& archive) {
  at::Tensor tensor;
  if (!archive.try_read(kArchiveKey, tensor, /*is_buffer=*/true) ||
      tensor.scalar_type() != at::kByte) {
    fail(ErrorKind::kFile, kWho, "the archive holds no optimizer of this class; give one that ",
         "torch::save has written from a CPUOffloadOptimizer. Nothing was changed");
  }
  tensor = tensor.cpu().contiguous();
  const auto* data = static_cast<const std::byte*>(tensor.data_ptr());
  impl_->restore(
      read_snapshot("the archive", {data, tensor.nbytes()}, impl_->engine.parameter_count()),
      param_groups_);
}

void CPUOffloadOptimizer::save_checkpoint(const std::string& path, CheckpointState state) {
  AtomicFile file(path);
  const bool is_exact = state == CheckpointState::kExact;
  write_snapshot(
      impl_->snapshot(param_groups_, is_exact ? StateLayout::kExact : StateLayout::kDecoded),
      [&](const void* data, size_t count) { file.write(data, count); });
  file.commit();
}

void CPUOffloadOptimizer::load_checkpoint(const std::string& path) {
  uint64_t limit = kMostOtherBytes;
  for (const auto& group : param_groups_) {
    for (const at::Tensor& tensor : group.params()) {
      limit += static_cast<uint64_t>(tensor.numel()) * kMostBytesPerElement;
    }
  }
  const FileMapping file(path);
  if (file.bytes().size() > limit) {
    fail(ErrorKind::kFile, kWho, path, " has ", file.bytes().size(), " bytes, a checkpoint of ",
         "these parameters at most ", limit, "; load one saved from the same parameters");
  }
  impl_->restore(read_snapshot(path, file.bytes(), impl_->engine.parameter_count()), param_groups_);
}

}  // namespace outboard
