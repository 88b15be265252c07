// Memory of masters and states; see state_store.h.
#include "offload/state_store.h"

#include "outboard/error.h"

namespace outboard {

namespace {
// Arrays in device memory start at multiples of this: whole 16-byte vectors, and no two arrays
// share a cache line.
constexpr size_t kDeviceAlignment = 256;
}  // namespace

struct StateStore::Wish {
  size_t bytes;
  MemoryKind kind;
  bool transfer;
  void** pointer;
  HostArray array = {};
};

bool needs_state(const RuleInfo& rule, size_t i, std::span<const double> hyper) {
  const int needed_by = rule.states[i].needed_by;
  return needed_by < 0 || hyper[static_cast<size_t>(needed_by)] != 0;
}

StateStore::StateStore(const EngineOptions& options, std::shared_ptr<Device> device,
                       Engine::Allocator allocator)
    : device_(std::move(device)),
      allocator_(std::move(allocator)),
      host_memory_(device_, options.pin_memory) {
  if (!allocator_ && device_) {
    allocator_ = [device = device_](size_t bytes) { return device->allocate(bytes); };
  }
}

std::vector<StateStore::Wish> StateStore::wishes_of(Parameter& parameter,
                                                    std::span<const double> hyper) const {
  const ParameterSpec& spec = parameter.spec;
  const size_t padded = padded_elements(spec.elements);
  std::vector<Wish> wishes;
  if (parameter.is_offloaded() && parameter.host_weight == nullptr) {
    const size_t bytes = padded * bytes_of(spec.type);
    wishes.push_back({bytes, MemoryKind::kWeights, true, &parameter.host_weight});
    wishes.push_back({bytes, MemoryKind::kGradients, true, &parameter.gradient_store});
  }
  if (bytes_of(spec.master_format) > 0 && parameter.master == nullptr) {
    wishes.push_back(
        {padded * bytes_of(spec.master_format), MemoryKind::kMasters, false, &parameter.master});
  }
  if (!spec.rule) return wishes;
  const RuleInfo& rule = rule_info(*spec.rule);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    if (!needs_state(rule, i, hyper) || parameter.states[i].codes != nullptr) continue;
    const StateFormat& format = spec.formats[i];
    parameter.states[i].block_elements = format.block_elements;
    wishes.push_back(
        {format.code_bytes(spec.elements), MemoryKind::kState, false, &parameter.states[i].codes});
    if (format.scale_count(spec.elements) > 0) {
      wishes.push_back({format.scale_count(spec.elements) * sizeof(float), MemoryKind::kState,
                        false, reinterpret_cast<void**>(&parameter.states[i].scales)});
    }
  }
  return wishes;
}

void StateStore::grant_host(std::vector<Wish>& wishes) {
  try {
    for (Wish& wish : wishes) {
      wish.array = host_memory_.reserve(wish.bytes, wish.kind, wish.transfer);
    }
  } catch (...) {
    host_memory_.rollback();  // or the next commit would map what nobody wants any more
    throw;
  }
  host_memory_.commit();
  for (Wish& wish : wishes) *wish.pointer = wish.array.data();
}

void StateStore::grant_device(Parameter& parameter, std::vector<Wish>& wishes) {
  size_t bytes = 0;
  for (const Wish& wish : wishes) bytes += round_up(wish.bytes, kDeviceAlignment);
  if (bytes == 0) return;
  auto memory = allocator_(bytes);
  auto* next = static_cast<std::byte*>(memory.get());
  for (Wish& wish : wishes) {
    *wish.pointer = next;
    next += round_up(wish.bytes, kDeviceAlignment);
  }
  // Earlier arrays of this parameter stay owned: the new owner keeps the old one.
  parameter.device_memory =
      std::shared_ptr<void>(memory.get(), [memory, before = parameter.device_memory](void*) {});
  device_state_bytes_ += bytes;
}

SegmentSums StateStore::add(std::span<const ParameterPtr> batch) {
  const std::lock_guard lock(mutex_);
  std::vector<Wish> wishes;
  SegmentSums sums;
  for (const ParameterPtr& parameter : batch) {
    const size_t segments = norm_segments(parameter->spec.elements);
    parameter->host_sums.resize(segments);
    if (parameter->spec.memory == Memory::kDevice) sums.count += segments;
    if (!parameter->is_host_updated()) continue;
    auto more = wishes_of(*parameter, parameter->spec.hyper);
    wishes.insert(wishes.end(), more.begin(), more.end());
  }
  const size_t sums_bytes = sums.count * sizeof(float);
  if (sums.count > 0) {
    wishes.push_back(
        {sums_bytes, MemoryKind::kStaging, true, reinterpret_cast<void**>(&sums.host)});
  }
  const size_t device_state_bytes_before = device_state_bytes_;
  try {
    if (sums.count > 0) sums.device = allocator_(sums_bytes);
    for (const ParameterPtr& parameter : batch) {
      if (parameter->is_host_updated()) continue;
      auto resident = wishes_of(*parameter, parameter->spec.hyper);
      grant_device(*parameter, resident);
    }
    grant_host(wishes);
  } catch (...) {
    device_state_bytes_ = device_state_bytes_before;  // its memory goes with the batch
    throw;
  }
  device_workspace_bytes_ += sums_bytes;
  hand_out(sums, batch);
  return sums;
}

void StateStore::hand_out(const SegmentSums& sums, std::span<const ParameterPtr> batch) {
  size_t offset = 0;
  for (const ParameterPtr& parameter : batch) {
    if (parameter->spec.memory != Memory::kDevice) continue;
    parameter->device_sums = static_cast<float*>(sums.device.get()) + offset;
    parameter->copied_sums = sums.host + offset;
    offset += norm_segments(parameter->spec.elements);
  }
}

void StateStore::ensure_states(Parameter& parameter, std::span<const double> hyper) {
  const std::lock_guard lock(mutex_);
  auto wishes = wishes_of(parameter, hyper);
  if (wishes.empty()) return;
  if (parameter.is_host_updated()) {
    grant_host(wishes);
  } else {
    grant_device(parameter, wishes);
  }
}

void StateStore::ensure_accumulators(std::span<const ParameterPtr> parameters) {
  const std::lock_guard lock(mutex_);
  std::vector<Wish> wishes;
  for (const ParameterPtr& parameter : parameters) {
    const bool has_place = parameter->accumulator != nullptr || parameter->spec.type == DType::kF32;
    if (!parameter->is_offloaded() || has_place) continue;
    wishes.push_back({padded_elements(parameter->spec.elements) * sizeof(float),
                      MemoryKind::kAccumulators, false,
                      reinterpret_cast<void**>(&parameter->accumulator)});
  }
  if (!wishes.empty()) grant_host(wishes);
}

std::unique_ptr<StagingRing> StateStore::make_ring(size_t slots, size_t slot_bytes) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<StagingRing> ring;
  try {
    ring = std::make_unique<StagingRing>(host_memory_, slots, slot_bytes);
  } catch (...) {
    host_memory_.rollback();
    throw;
  }
  host_memory_.commit();
  return ring;
}

void* StateStore::staging(size_t bytes) {
  const std::lock_guard lock(mutex_);
  const HostArray array = host_memory_.reserve(bytes, MemoryKind::kStaging, true);
  host_memory_.commit();
  return array.data();
}

std::string StateStore::warning() const {
  const std::lock_guard lock(mutex_);
  return host_memory_.warning();
}

MemoryStats StateStore::memory() const {
  const std::lock_guard lock(mutex_);
  return {.host_weights = host_memory_.bytes(MemoryKind::kWeights),
          .host_masters = host_memory_.bytes(MemoryKind::kMasters),
          .host_state = host_memory_.bytes(MemoryKind::kState),
          .host_gradients = host_memory_.bytes(MemoryKind::kGradients),
          .host_accumulators = host_memory_.bytes(MemoryKind::kAccumulators),
          .host_staging = host_memory_.bytes(MemoryKind::kStaging),
          .host_pinned = host_memory_.pinned_bytes(),
          .device_state = device_state_bytes_,
          .device_workspace = device_workspace_bytes_};
}

}  // namespace outboard
