// What a step that can be captured in a CUDA graph reads when it runs: hyper-parameters of groups
// and step counts of parameters, in tensors beside the parameters that stay where they are.
#ifndef OUTBOARD_OFFLOAD_TORCH_CAPTURABLE_NUMBERS_H_
#define OUTBOARD_OFFLOAD_TORCH_CAPTURABLE_NUMBERS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "outboard/engine.h"

namespace outboard {

/// A hyper-parameter that is a tensor on the device: its place, in catalogue order, and its value.
struct HyperTensor {
  size_t group = 0;
  size_t index = 0;
  at::Tensor value;
};

/// Owns these tensors. Everything is enqueued on torch's current stream.
class CapturableNumbers {
 public:
  explicit CapturableNumbers(at::Device device) : device_(device) {}

  /// Makes step counts of 0 for more parameters.
  void add_parameters(size_t count);

  /// Sends to the device what of `hyper` differs from what was sent last, and copies `tensors`,
  /// whose places in `hyper` are not looked at. While a graph is captured only the copies are made,
  /// as part of the graph. Throws Error(kState) if there is something to send then, Error(kValue)
  /// for a tensor that is not one number on the device.
  void send(const std::vector<std::vector<double>>& hyper, std::span<const HyperTensor> tensors,
            bool is_capturing);

  /// Pointers for the engine; those of groups exist once they were sent.
  [[nodiscard]] DeviceNumbers pointers() const;

  void set_step(size_t parameter, int64_t step);
  /// Waits for the current stream.
  [[nodiscard]] std::vector<int64_t> steps() const;

 private:
  /// One parameter group.
  struct Group {
    at::Tensor on_device;      // fp64
    std::vector<double> sent;  // NaN where a tensor was copied, or nothing was sent yet
  };

  void send_number(size_t number, size_t index, double value, bool is_capturing);

  at::Device device_;
  std::vector<Group> groups_;
  std::vector<at::Tensor> steps_;     // int64, one tensor for each call of add_parameters()
  std::vector<at::Tensor> captured_;  // graphs read these
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_CAPTURABLE_NUMBERS_H_
