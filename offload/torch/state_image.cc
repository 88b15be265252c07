// Copies between a device's state arrays and the host; see state_image.h.
#include "offload/torch/state_image.h"

#include <ATen/ATen.h>

namespace outboard {

// Codes and scales on the host: of an array that lies there, itself.
struct StateImage::Copy {
  at::Tensor codes;
  at::Tensor scales;
  StateArray array;
};

at::Tensor StateImage::device_bytes(void* data, size_t bytes) const {
  return at::from_blob(data, {static_cast<int64_t>(bytes)},
                       at::TensorOptions().dtype(at::kByte).device(device_));
}

StateImage::Copy StateImage::host_copy() const {
  if (!device_.is_cuda()) return {{}, {}, live_};
  Copy copy{device_bytes(live_.codes, format_.code_bytes(elements_)).cpu(),
            device_bytes(live_.scales, format_.scale_count(elements_) * sizeof(float)).cpu(),
            {}};
  copy.array = {copy.codes.data_ptr(), static_cast<float*>(copy.scales.data_ptr()),
                format_.block_elements};
  return copy;
}

void StateImage::write_back(const Copy& copy) {
  if (!device_.is_cuda()) return;
  device_bytes(live_.codes, format_.code_bytes(elements_)).copy_(copy.codes);
  device_bytes(live_.scales, format_.scale_count(elements_) * sizeof(float)).copy_(copy.scales);
}

at::Tensor StateImage::decoded(const at::Tensor& parameter) const {
  at::Tensor values = at::empty_strided(parameter.sizes(), parameter.strides(), at::kFloat);
  if (elements_ == 0) return values;
  const Copy copy = host_copy();
  decode_state(copy.array, format_, elements_, values.mutable_data_ptr<float>());
  return values;
}

void StateImage::encode(const at::Tensor& value, const at::Tensor& parameter,
                        const RandomContext& random) {
  if (elements_ == 0) return;
  const at::Tensor values =
      at::empty_strided(parameter.sizes(), parameter.strides(), at::kFloat).copy_(value);
  const Copy copy = host_copy();
  encode_state(values.const_data_ptr<float>(), format_, elements_, random, copy.array);
  write_back(copy);
}

void StateImage::restore(const StoredState& stored) {
  if (elements_ == 0) return;
  const Copy copy = host_copy();
  restore_state(stored, format_, elements_, copy.array);
  write_back(copy);
}

}  // namespace outboard
