// Tensors of numbers; see capturable_numbers.h. No CUDA call is made here: torch enqueues.
#include "offload/torch/capturable_numbers.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {

void CapturableNumbers::add_parameters(size_t count) {
  steps_.push_back(at::zeros({static_cast<int64_t>(count)},
                             at::TensorOptions().dtype(at::kLong).device(device_)));
}

void CapturableNumbers::send_number(size_t number, size_t index, double value, bool is_capturing) {
  Group& group = groups_[number];
  if (group.sent[index] == value) return;
  if (is_capturing) {
    fail(ErrorKind::kState, kWho, "a hyper-parameter of group ", number, " is ", value,
         ", which was not sent to the device before the capture; take a step before it, or call "
         "update_hyperparameters()");
  }
  // By value, in the order of the stream: replays before this call still see the old number.
  group.on_device.select(0, static_cast<int64_t>(index)).fill_(value);
  group.sent[index] = value;
}

void CapturableNumbers::send(const std::vector<std::vector<double>>& hyper,
                             std::span<const HyperTensor> tensors, bool is_capturing) {
  for (const auto& [group, index, value] : tensors) {
    if (group < hyper.size() && index < hyper[group].size() && value.device() == device_ &&
        value.numel() == 1) {
      continue;
    }
    fail(ErrorKind::kValue, kWho, "hyper-parameter ", index, " of group ", group, " is ",
         describe(value), "; give one number on ", device_.str());
  }
  while (groups_.size() < hyper.size() && !is_capturing) {
    const auto count = static_cast<int64_t>(hyper[groups_.size()].size());
    groups_.push_back({at::zeros({count}, at::TensorOptions().dtype(at::kDouble).device(device_)),
                       std::vector<double>(hyper[groups_.size()].size(),
                                           std::numeric_limits<double>::quiet_NaN())});
  }
  if (groups_.size() < hyper.size()) {
    fail(ErrorKind::kState, kWho, "group ", groups_.size(),
         " was not sent to the device before the ",
         "capture; take a step before it, or call update_hyperparameters()");
  }
  const auto is_tensor = [&](size_t group, size_t index) {
    return std::ranges::any_of(tensors, [&](const HyperTensor& tensor) {
      return tensor.group == group && tensor.index == index;
    });
  };
  for (size_t group = 0; group < hyper.size(); ++group) {
    for (size_t index = 0; index < hyper[group].size(); ++index) {
      if (!is_tensor(group, index)) send_number(group, index, hyper[group][index], is_capturing);
    }
  }
  for (const auto& [group, index, value] : tensors) {
    groups_[group].on_device.select(0, static_cast<int64_t>(index)).copy_(value.reshape({}));
    groups_[group].sent[index] = std::numeric_limits<double>::quiet_NaN();
    if (is_capturing) captured_.push_back(value);
  }
}

DeviceNumbers CapturableNumbers::pointers() const {
  DeviceNumbers result;
  for (const Group& group : groups_) result.hyper.push_back(group.on_device.data_ptr<double>());
  for (const at::Tensor& counts : steps_) {
    for (int64_t i = 0; i < counts.numel(); ++i) {
      result.steps.push_back(counts.data_ptr<int64_t>() + i);
    }
  }
  return result;
}

void CapturableNumbers::set_step(size_t parameter, int64_t step) {
  for (const at::Tensor& counts : steps_) {
    const auto count = static_cast<size_t>(counts.numel());
    if (parameter < count) {
      counts.select(0, static_cast<int64_t>(parameter)).fill_(step);
      return;
    }
    parameter -= count;
  }
}

std::vector<int64_t> CapturableNumbers::steps() const {
  std::vector<int64_t> result;
  for (const at::Tensor& counts : steps_) {
    const at::Tensor on_host = counts.to(at::kCPU);
    const auto* values = on_host.data_ptr<int64_t>();
    result.insert(result.end(), values, values + on_host.numel());
  }
  return result;
}

}  // namespace outboard
