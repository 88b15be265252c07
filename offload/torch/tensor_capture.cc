// Steps of TensorEngine that can be captured in CUDA graphs: everything that changes from step to
// step lies on the device, so that a replay needs nobody. See tensor_engine.h.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "offload/torch/tensor_engine.h"
#include "outboard/error.h"

namespace outboard {

void TensorEngine::check_capturable(const ParameterSpec& spec, const at::Tensor& tensor) {
  if (spec.placement == Placement::kResident && spec.rule) return;
  fail(ErrorKind::kValue, kWho, "parameter ", spec.name, " is ", describe(tensor),
       ", and capturable steps are for parameters that lie with their state on one CUDA device; ",
       "leave capturable off");
}

void TensorEngine::make_capturable() {
  is_capturable_ = true;
  for (size_t i = 0; i < slots_.size(); ++i) {
    check_capturable(*engine_->view(i).spec, slots_[i].tensor);
  }
  if (!slots_.empty()) start_capturable();
}

void TensorEngine::start_capturable() {
  const at::NoGradGuard no_grad;
  if (!numbers_) numbers_.emplace(*device_);
  const size_t known = numbers_->pointers().steps.size();
  numbers_->add_parameters(slots_.size() - known);
}

void TensorEngine::send_hyper(std::vector<std::vector<double>>& hyper,
                              std::span<const HyperTensor> tensors) {
  const bool is_capturing = engine_->is_capturing(stream());
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!is_capturing || !has_changed(slots_[i])) continue;
    fail(ErrorKind::kState, kWho, "parameter ", slots_[i].name, " was written to or moved since ",
         "the last step; call update_hyperparameters() or take a step before the capture");
  }
  if (!is_capturing) notice_changed_weights();
  numbers_->send(hyper, tensors, is_capturing);
  has_captured_ = has_captured_ || is_capturing;
}

void TensorEngine::enqueue_step(std::vector<std::vector<double>> hyper,
                                std::vector<uint32_t> group_of,
                                std::span<const HyperTensor> tensors) {
  const at::NoGradGuard no_grad;
  fill_places(hyper, group_of, tensors);
  check_same_states(hyper, group_of);
  send_hyper(hyper, tensors);
  send_pending(false);
  std::vector<size_t> updated;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (engine_->has_gradient(i)) updated.push_back(i);
    slots_[i].sent_gradient.reset();
    slots_[i].backwards = 0;
  }
  engine_->enqueue_step({.hyper = hyper, .group_of = std::move(group_of)}, numbers_->pointers(),
                        stream());
  last_hyper_ = std::move(hyper);
  for (const size_t i : updated) {
    Slot& slot = slots_[i];
    if (!slot.tensor.is_inference()) torch::autograd::impl::bump_version(slot.tensor);
    slot.weight_version = slot.tensor._version();
  }
}

void TensorEngine::update_hyper(std::vector<std::vector<double>> hyper,
                                std::vector<uint32_t> group_of,
                                std::span<const HyperTensor> tensors) {
  const at::NoGradGuard no_grad;
  if (engine_->is_capturing(stream())) {
    fail(ErrorKind::kState, kWho, "update_hyperparameters() was called while a graph is captured; ",
         "call it before the capture, or between replays");
  }
  fill_places(hyper, group_of, tensors);
  check_same_states(hyper, group_of);
  send_hyper(hyper, tensors);
  last_hyper_ = std::move(hyper);
}

void TensorEngine::fill_places(std::vector<std::vector<double>>& hyper,
                               const std::vector<uint32_t>& group_of,
                               std::span<const HyperTensor> tensors) const {
  for (size_t i = 0; i < slots_.size(); ++i) {
    const RuleInfo& rule = rule_info(*engine_->view(i).spec->rule);
    const size_t group = group_of.empty() ? 0 : group_of.at(i);
    for (const HyperTensor& tensor : tensors) {
      if (tensor.group != group) continue;
      const HyperParameter& place = rule.hyper_parameters[tensor.index];
      const bool makes_state = std::ranges::any_of(rule.states, [&](const StateInfo& state) {
        return state.needed_by == static_cast<int>(tensor.index);
      });
      if (place.is_flag || makes_state) {
        fail(ErrorKind::kValue, kWho, place.key, " of group ", group,
             " is a tensor on the device, ", "and it says what state there is; give a number");
      }
      hyper.at(group).at(tensor.index) = place.default_value;
    }
  }
}

void TensorEngine::check_same_states(const std::vector<std::vector<double>>& hyper,
                                     const std::vector<uint32_t>& group_of) const {
  for (size_t i = 0; i < slots_.size(); ++i) {
    const RuleInfo& rule = rule_info(*engine_->view(i).spec->rule);
    const size_t group = group_of.empty() ? 0 : group_of.at(i);
    check_hyper(rule, hyper.at(group), kWho);
    if (!has_captured_ || group >= last_hyper_.size()) continue;
    for (const StateInfo& state : rule.states) {
      if (state.needed_by < 0) continue;
      const auto at = static_cast<size_t>(state.needed_by);
      if ((hyper[group][at] != 0) == (last_hyper_[group][at] != 0)) continue;
      fail(ErrorKind::kState, kWho, rule.hyper_parameters[at].key, " of group ", group, " changed ",
           "from ", last_hyper_[group][at], " to ", hyper[group][at], ", which makes or drops a ",
           "state that captured graphs know; make a new optimizer and capture anew");
    }
  }
}

void TensorEngine::note_steps() {
  if (!numbers_) return;
  const std::vector<int64_t> steps = numbers_->steps();
  for (size_t i = 0; i < steps.size(); ++i) {
    // A master that was loaded and not stepped with stays what it is.
    if (engine_->view(i).step != steps[i]) engine_->load_step(i, steps[i], false);
  }
}

void TensorEngine::set_step(size_t parameter, int64_t step, bool has_master) {
  engine_->load_step(parameter, step, has_master);
  if (numbers_) numbers_->set_step(parameter, step);
}

}  // namespace outboard
