// Reading weights; see weight_reader.h.
#include "offload/weight_reader.h"

#include <cstring>
#include <vector>

#include "cpu_kernels/gradient_math.h"

namespace outboard {

namespace {

// The master that belongs to a weight nobody has updated yet.
void start_master(const Parameter& parameter, const void* weight, void* master, cpu::Arena& arena) {
  const ParameterSpec& spec = parameter.spec;
  if (is_split(spec.master_format)) {
    if (!parameter.keeps_loaded_master) {
      std::memset(master, 0, padded_elements(spec.elements) * bytes_of(spec.master_format));
    }
  } else if (spec.master_format == MasterFormat::kF32 && !parameter.keeps_loaded_master) {
    arena.run(spec.elements, kNormSegmentElements, [&](size_t first, size_t last) {
      const auto* from = static_cast<const std::byte*>(weight) + first * bytes_of(spec.type);
      cpu::widen(from, spec.type, last - first, static_cast<float*>(master) + first);
    });
  }
}

// Streamed parameters have no image on the host; one weight's worth of memory is borrowed for the
// masters that are made of it.
void start_streamed_master(const Parameter& parameter, CopyQueue& queue, cpu::Arena& arena) {
  const ParameterSpec& spec = parameter.spec;
  std::vector<std::byte> weight;
  if (spec.master_format == MasterFormat::kF32 && !parameter.keeps_loaded_master) {
    weight.resize(spec.elements * bytes_of(spec.type));
    queue.copy_to_host(weight.data(), spec.weight, weight.size());
    queue.record()->synchronize();
  }
  start_master(parameter, weight.data(), parameter.master, arena);
}

// Masters of resident parameters lie on the device, which has no kernel of its own for this rare
// case.
void start_resident_master(const Parameter& parameter, CopyQueue& queue, cpu::Arena& arena) {
  const ParameterSpec& spec = parameter.spec;
  const size_t master_bytes = bytes_of(spec.master_format) * padded_elements(spec.elements);
  if (master_bytes == 0 || parameter.keeps_loaded_master) return;
  std::vector<std::byte> weight;
  std::vector<std::byte> master(master_bytes);
  if (!is_split(spec.master_format)) {  // a split one is zeros, whatever the weight is
    weight.resize(spec.elements * bytes_of(spec.type));
    queue.copy_to_host(weight.data(), spec.weight, weight.size());
    queue.record()->synchronize();
  }
  start_master(parameter, weight.data(), master.data(), arena);
  queue.copy_to_device(parameter.master, master.data(), master.size());
  queue.record()->synchronize();
}

}  // namespace

void read_weights(std::span<Parameter* const> parameters, Device* device, CopyQueue* queue,
                  ComputeStream stream, cpu::Arena& arena) {
  if (queue != nullptr) queue->wait(device->record(stream));
  for (Parameter* parameter : parameters) {
    if (!parameter->is_offloaded()) continue;
    // An earlier return of this weight may still be reading the image.
    for (const EventPtr& returned : parameter->returned) queue->wait(returned);
    queue->copy_to_host(parameter->host_weight, parameter->spec.weight,
                        parameter->spec.elements * bytes_of(parameter->spec.type));
  }
  if (queue != nullptr) queue->record()->synchronize();
  for (Parameter* parameter : parameters) {
    if (parameter->is_streamed()) {
      start_streamed_master(*parameter, *queue, arena);
    } else if (parameter->is_host_updated()) {
      if (parameter->spec.memory == Memory::kHost) parameter->host_weight = parameter->spec.weight;
      start_master(*parameter, parameter->host_weight, parameter->master, arena);
    } else {
      start_resident_master(*parameter, *queue, arena);
    }
  }
}

}  // namespace outboard
