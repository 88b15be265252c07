// One state array with blocks, as tensors: reads and writes it wherever it lies, by way of the
// host, where the codecs work. Names nothing and checks nothing.
#ifndef OUTBOARD_OFFLOAD_TORCH_STATE_IMAGE_H_
#define OUTBOARD_OFFLOAD_TORCH_STATE_IMAGE_H_

#include <ATen/core/Tensor.h>

#include "offload/state_codes.h"
#include "outboard/state_format.h"

namespace outboard {

/// A state array of one parameter. Arrays in host memory are used where they are; those on a device
/// are copied in the order of the current stream, and waited for. The array must outlive this.
class StateImage {
 public:
  StateImage(const StateArray& live, const StateFormat& format, size_t elements, at::Device device)
      : live_(live), format_(format), elements_(elements), device_(device) {}

  /// fp32 on the host, with the sizes and strides of `parameter`.
  [[nodiscard]] at::Tensor decoded(const at::Tensor& parameter) const;
  /// Encodes `value`, a floating-point tensor of the sizes of `parameter` on any device.
  void encode(const at::Tensor& value, const at::Tensor& parameter, const RandomContext& random);
  /// Takes the bits of `stored`, which has no flaw.
  void restore(const StoredState& stored);

 private:
  struct Copy;
  [[nodiscard]] Copy host_copy() const;
  void write_back(const Copy& copy);
  [[nodiscard]] at::Tensor device_bytes(void* data, size_t bytes) const;

  StateArray live_;
  StateFormat format_;
  size_t elements_;
  at::Device device_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_STATE_IMAGE_H_
