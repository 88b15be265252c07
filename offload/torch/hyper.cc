// One pair of functions per option struct; see hyper.h.
#include "offload/torch/hyper.h"

#include <torch/serialize/archive.h>

#include "offload/torch/tensor_types.h"
#include "outboard/error.h"
#include "outboard/torch/cpu_offload_optimizer.h"

namespace outboard {
namespace {

using torch::optim::AdagradOptions;
using torch::optim::AdamOptions;
using torch::optim::AdamWOptions;
using torch::optim::OptimizerOptions;
using torch::optim::RMSpropOptions;
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
std::vector<double> list_of(const AdagradOptions& o) {
  return {o.lr(), o.lr_decay(), o.weight_decay(), o.initial_accumulator_value(), o.eps(), 0};
}
std::vector<double> list_of(const RMSpropOptions& o) {
  return {o.lr(), o.alpha(), o.eps(), o.weight_decay(), o.momentum(), o.centered() ? 1.0 : 0.0, 0};
}
std::vector<double> list_of(const AdEMAMixOptions& o) {
  const auto [beta1, beta2, beta3] = o.betas();
  return {o.lr(),           beta1, beta2, beta3, o.alpha(), o.t_alpha(), o.t_beta3(), o.eps(),
          o.weight_decay(), 0};
}
std::vector<double> list_of(const LAMBOptions& o) {
  const auto [beta1, beta2] = o.betas();
  return {o.lr(), beta1, beta2, o.eps(), o.weight_decay(), o.max_unorm(), 0};
}
std::vector<double> list_of(const LARSOptions& o) {
  return {o.lr(),
          o.momentum(),
          o.dampening(),
          o.weight_decay(),
          o.nesterov() ? 1.0 : 0.0,
          o.eps(),
          o.max_unorm(),
          o.trust_coefficient(),
          0};
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
void set_list(AdagradOptions& o, std::span<const double> v) {
  o.lr(v[0]).lr_decay(v[1]).weight_decay(v[2]).initial_accumulator_value(v[3]).eps(v[4]);
}
void set_list(RMSpropOptions& o, std::span<const double> v) {
  o.lr(v[0]).alpha(v[1]).eps(v[2]).weight_decay(v[3]).momentum(v[4]).centered(v[5] != 0);
}
void set_list(AdEMAMixOptions& o, std::span<const double> v) {
  o.lr(v[0]).betas({v[1], v[2], v[3]}).alpha(v[4]).t_alpha(v[5]).t_beta3(v[6]);
  o.eps(v[7]).weight_decay(v[8]);
}
void set_list(LAMBOptions& o, std::span<const double> v) {
  o.lr(v[0]).betas(Betas(v[1], v[2])).eps(v[3]).weight_decay(v[4]).max_unorm(v[5]);
}
void set_list(LARSOptions& o, std::span<const double> v) {
  o.lr(v[0]).momentum(v[1]).dampening(v[2]).weight_decay(v[3]).nesterov(v[4] != 0);
  o.eps(v[5]).max_unorm(v[6]).trust_coefficient(v[7]);
}

// An option struct in an archive: one number for each hyper-parameter of its rule.
template <class Options>
void write(RuleId rule, const Options& options, torch::serialize::OutputArchive& archive) {
  const std::vector<double> values = list_of(options);
  for (size_t i = 0; i < values.size(); ++i) {
    archive.write(std::string(rule_info(rule).hyper_parameters[i].key), c10::IValue(values[i]));
  }
}

// The inverse; what the archive lacks stays as it is.
template <class Options>
void read(RuleId rule, Options& options, torch::serialize::InputArchive& archive) {
  std::vector<double> values = list_of(options);
  for (size_t i = 0; i < values.size(); ++i) {
    c10::IValue value;
    const std::string key(rule_info(rule).hyper_parameters[i].key);
    if (archive.try_read(key, value)) values[i] = value.toDouble();
  }
  set_list(options, values);
}

// Calls `visit(rule, options)` with the struct's own type if it is `Typed`; returns whether it is.
template <class Typed, class Options, class Visit>
bool visit_as(RuleId rule, Options& options, const Visit& visit) {
  using Wanted = std::conditional_t<std::is_const_v<Options>, const Typed, Typed>;
  auto* typed = dynamic_cast<Wanted*>(&options);
  if (typed != nullptr) visit(rule, *typed);
  return typed != nullptr;
}

// Calls `visit(rule, options)` with the struct's own type.
template <class Options, class Visit>
void with_type(Options& options, const Visit& visit) {
  const bool is_known = visit_as<AdamWOptions>(RuleId::kAdamW, options, visit) ||
                        visit_as<AdamOptions>(RuleId::kAdam, options, visit) ||
                        visit_as<SGDOptions>(RuleId::kSGD, options, visit) ||
                        visit_as<LionOptions>(RuleId::kLion, options, visit) ||
                        visit_as<AdagradOptions>(RuleId::kAdagrad, options, visit) ||
                        visit_as<RMSpropOptions>(RuleId::kRMSprop, options, visit) ||
                        visit_as<AdEMAMixOptions>(RuleId::kAdEMAMix, options, visit) ||
                        visit_as<LAMBOptions>(RuleId::kLAMB, options, visit) ||
                        visit_as<LARSOptions>(RuleId::kLARS, options, visit);
  if (is_known) return;
  fail(ErrorKind::kType, kWho, "there is no native rule for options of type ",
       c10::demangle(typeid(options).name()), "; give AdamWOptions, AdamOptions, SGDOptions, ",
       "AdagradOptions, RMSpropOptions, LionOptions, AdEMAMixOptions, LAMBOptions or LARSOptions, ",
       "or a factory of the optimizer");
}

}  // namespace

RuleId rule_of(const OptimizerOptions& options) {
  RuleId result = {};
  with_type(options, [&](RuleId rule, const auto&) { result = rule; });
  return result;
}

std::vector<double> hyper_of(const OptimizerOptions& options) {
  std::vector<double> result;
  with_type(options, [&](RuleId, const auto& typed) { result = list_of(typed); });
  return result;
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

void AdEMAMixOptions::serialize(torch::serialize::OutputArchive& archive) const {
  archive.write("lr", c10::IValue(lr_));
  archive.write("betas", c10::IValue(betas_));
  archive.write("alpha", c10::IValue(alpha_));
  archive.write("t_alpha", c10::IValue(t_alpha_));
  archive.write("t_beta3", c10::IValue(t_beta3_));
  archive.write("eps", c10::IValue(eps_));
  archive.write("weight_decay", c10::IValue(weight_decay_));
}

void AdEMAMixOptions::serialize(torch::serialize::InputArchive& archive) {
  c10::IValue value;
  const auto read = [&](const char* key, double& number) {
    if (archive.try_read(key, value)) number = value.toDouble();
  };
  if (archive.try_read("betas", value)) betas_ = value.to<betas_t>();
  read("lr", lr_);
  read("alpha", alpha_);
  read("t_alpha", t_alpha_);
  read("t_beta3", t_beta3_);
  read("eps", eps_);
  read("weight_decay", weight_decay_);
}

void LAMBOptions::serialize(torch::serialize::OutputArchive& archive) const {
  write(RuleId::kLAMB, *this, archive);
}
void LAMBOptions::serialize(torch::serialize::InputArchive& archive) {
  read(RuleId::kLAMB, *this, archive);
}
void LARSOptions::serialize(torch::serialize::OutputArchive& archive) const {
  write(RuleId::kLARS, *this, archive);
}
void LARSOptions::serialize(torch::serialize::InputArchive& archive) {
  read(RuleId::kLARS, *this, archive);
}

}  // namespace outboard
