// One pair of functions per option struct; see hyper.h.
#include "offload/torch/hyper.h"

#include <torch/serialize/archive.h>

#include "offload/torch/tensor_types.h"
#include "outboard/error.h"
#include "outboard/torch/cpu_offload_optimizer.h"

namespace outboard {
namespace {

using torch::optim::AdamOptions;
using torch::optim::AdamWOptions;
using torch::optim::OptimizerOptions;
using torch::optim::SGDOptions;
using Betas = std::tuple<double, double>;

template <class Options>
std::vector<double> adam_list(const Options& o) {
  const auto [beta1, beta2] = o.betas();
  return {o.lr(), beta1, beta2, o.eps(), o.weight_decay(), o.amsgrad() ? 1.0 : 0.0, 0};
}
std::vector<double> list_of(const AdamWOptions& o) { return adam_list(o); }
std::vector<double> list_of(const AdamOptions& o) { return adam_list(o); }
std::vector<double> list_of(const SGDOptions& o) {
  return {o.lr(), o.momentum(), o.dampening(), o.weight_decay(), o.nesterov() ? 1.0 : 0.0, 0};
}
std::vector<double> list_of(const LionOptions& o) {
  const auto [beta1, beta2] = o.betas();
  return {o.lr(), beta1, beta2, o.weight_decay(), 0};
}

template <class Options>
void set_adam(Options& o, std::span<const double> v) {
  o.lr(v[0]).betas(Betas(v[1], v[2])).eps(v[3]).weight_decay(v[4]).amsgrad(v[5] != 0);
}
void set_list(AdamWOptions& o, std::span<const double> v) { set_adam(o, v); }
void set_list(AdamOptions& o, std::span<const double> v) { set_adam(o, v); }
void set_list(SGDOptions& o, std::span<const double> v) {
  o.lr(v[0]).momentum(v[1]).dampening(v[2]).weight_decay(v[3]).nesterov(v[4] != 0);
}
void set_list(LionOptions& o, std::span<const double> v) {
  o.lr(v[0]).betas(Betas(v[1], v[2])).weight_decay(v[3]);
}

// Calls `visit(rule, options)` with the struct's own type.
template <class Options, class Visit>
auto with_type(Options& options, Visit visit) {
  const auto as = [&]<class T>(T*) {
    using Wanted = std::conditional_t<std::is_const_v<Options>, const T, T>;
    return dynamic_cast<Wanted*>(&options);
  };
  if (auto* adamw = as(static_cast<AdamWOptions*>(nullptr))) return visit(RuleId::kAdamW, *adamw);
  if (auto* adam = as(static_cast<AdamOptions*>(nullptr))) return visit(RuleId::kAdam, *adam);
  if (auto* sgd = as(static_cast<SGDOptions*>(nullptr))) return visit(RuleId::kSGD, *sgd);
  if (auto* lion = as(static_cast<LionOptions*>(nullptr))) return visit(RuleId::kLion, *lion);
  fail(ErrorKind::kType, kWho, "there is no native rule for options of type ",
       c10::demangle(typeid(options).name()), "; give AdamWOptions, AdamOptions, SGDOptions or ",
       "LionOptions, or a factory of the optimizer");
}

}  // namespace

RuleId rule_of(const OptimizerOptions& options) {
  return with_type(options, [](RuleId rule, const auto&) { return rule; });
}

std::vector<double> hyper_of(const OptimizerOptions& options) {
  return with_type(options, [](RuleId, const auto& typed) { return list_of(typed); });
}

void set_hyper(OptimizerOptions& options, std::span<const double> hyper) {
  with_type(options, [&](RuleId id, auto& typed) {
    const auto& keys = rule_info(id).hyper_parameters;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (keys[i].key == "maximize" && hyper[i] != 0) {
        fail(ErrorKind::kValue, kWho, "maximize is ", hyper[i], ", which torch's C++ options of ",
             rule_info(id).name, " cannot hold; negate the loss instead");
      }
    }
    set_list(typed, hyper);
  });
}

void LionOptions::serialize(torch::serialize::OutputArchive& archive) const {
  archive.write("lr", c10::IValue(lr_));
  archive.write("betas", c10::IValue(betas_));
  archive.write("weight_decay", c10::IValue(weight_decay_));
}

void LionOptions::serialize(torch::serialize::InputArchive& archive) {
  c10::IValue value;
  if (archive.try_read("lr", value)) lr_ = value.toDouble();
  if (archive.try_read("betas", value)) betas_ = value.to<betas_t>();
  if (archive.try_read("weight_decay", value)) weight_decay_ = value.toDouble();
}

}  // namespace outboard
