// Stage 1; see gradient_intake.h.
#include "offload/gradient_intake.h"

#include <algorithm>

namespace outboard {

GradientIntake::GradientIntake(std::shared_ptr<Device> device, size_t chunk_elements)
    : device_(std::move(device)), chunk_elements_(chunk_elements) {
  if (device_ != nullptr) down_ = device_->make_copy_queue();
}

void GradientIntake::measure(const Parameter& parameter, ComputeStream stream) {
  device_->sum_of_squares(stream, parameter.local_gradient.data, parameter.spec.type,
                          parameter.spec.elements, parameter.device_sums);
}

EventPtr GradientIntake::store(Parameter& parameter, const void* gradient, ComputeStream stream) {
  const ParameterSpec& spec = parameter.spec;
  device_->sum_of_squares(stream, gradient, spec.type, spec.elements, parameter.device_sums);
  // Order: the copy queue may read the gradient only after the compute stream has written it;
  // without this wait it would copy whatever the memory held before. The store itself is free:
  // step() does not return before the driver has read it, and a replacing copy is behind the
  // replaced one in the same queue.
  down_->wait(device_->record(stream));
  parameter.arrived.clear();
  for (size_t first = 0; first < spec.elements; first += chunk_elements_) {
    const size_t count = std::min(chunk_elements_, spec.elements - first);
    const size_t offset = first * bytes_of(spec.type);
    down_->copy_to_host(static_cast<std::byte*>(parameter.gradient_store) + offset,
                        static_cast<const std::byte*>(gradient) + offset,
                        count * bytes_of(spec.type));
    parameter.arrived.push_back(down_->record());
  }
  return parameter.arrived.back();
}

void GradientIntake::stage(Parameter& parameter, const void* gradient, ComputeStream stream,
                           StagingRing& ring, const std::function<void(GradientInSlot)>& add) {
  const ParameterSpec& spec = parameter.spec;
  // Slots hold whole norm segments, so that each slot's sums of squares are whole values of their
  // own.
  const size_t slot_elements =
      ring.slot_bytes() / bytes_of(spec.type) / kNormSegmentElements * kNormSegmentElements;
  down_->wait(device_->record(stream));
  for (size_t first = 0; first < spec.elements; first += slot_elements) {
    const size_t last = std::min(first + slot_elements, spec.elements);
    const size_t bytes = (last - first) * bytes_of(spec.type);
    // Order: acquire() gives a slot only after the driver has read the copy before, so this copy
    // overwrites nothing that is still needed. The driver frees slots without needing anything from
    // this thread.
    StagingRing::Slot slot = ring.acquire(bytes);
    down_->copy_to_host(
        slot.data(), static_cast<const std::byte*>(gradient) + first * bytes_of(spec.type), bytes);
    add({&parameter, first, last, GradientOnHost(down_->record()), std::move(slot)});
  }
}

GradientOnHost GradientIntake::piece(const Parameter& parameter, size_t first) const {
  // In host memory already: the caller's own, or added by the driver, which also runs stage 2.
  if (!parameter.is_offloaded() || parameter.is_accumulated) return GradientOnHost(nullptr);
  return GradientOnHost(parameter.arrived[first / chunk_elements_]);
}

std::vector<GradientOnHost> GradientIntake::pieces(const Parameter& parameter) const {
  std::vector<GradientOnHost> all;
  for (size_t first = 0; first < parameter.spec.elements; first += chunk_elements_) {
    all.push_back(piece(parameter, first));
  }
  return all;
}

EventPtr GradientIntake::read_values(const std::vector<Value>& values, ComputeStream stream) {
  // Order: sums are written by kernels on this same stream.
  try {
    for (const Value& value : values) {
      device_->write_to_host(stream, value.host, value.device, value.count);
    }
  } catch (...) {
    last_read_ = device_->record(stream);
    throw;
  }
  return last_read_ = device_->record(stream);
}

}  // namespace outboard
