// Memory of masters and states; see state_store.h.
#include "offload/state_store.h"

#include <algorithm>
#include <cstring>

#include "outboard/error.h"

namespace outboard {

namespace {
// Arrays in device memory start at multiples of this: whole 16-byte vectors, and no two arrays
// share a cache line.
constexpr size_t kDeviceAlignment = 256;
constexpr size_t kHostAlignment = 64;
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
    wishes.push_back({padded * bytes_of(spec.master_format), MemoryKind::kMasters,
                      parameter.is_streamed(), &parameter.master});
  }
  if (!spec.rule) return wishes;
  const RuleInfo& rule = rule_info(*spec.rule);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    if (!needs_state(rule, i, hyper) || parameter.states[i].codes != nullptr) continue;
    add_state_wishes(spec.formats[i], spec.elements, parameter.is_streamed(), parameter.states[i],
                     wishes);
  }
  return wishes;
}

void StateStore::add_state_wishes(const StateFormat& format, size_t elements, bool is_copied,
                                  StateArray& state, std::vector<Wish>& wishes) {
  state.block_elements = format.block_elements;
  wishes.push_back({format.code_bytes(elements), MemoryKind::kState, is_copied, &state.codes});
  if (format.scale_count(elements) == 0) return;
  wishes.push_back({format.scale_count(elements) * sizeof(float), MemoryKind::kState, is_copied,
                    reinterpret_cast<void**>(&state.scales)});
}

void* StateStore::take_spare(const Parameter* owner, size_t bytes) {
  const size_t wanted = round_up(bytes, kHostAlignment);
  auto best = spares_.end();
  for (auto spare = spares_.begin(); spare != spares_.end(); ++spare) {
    if (spare->owner != owner || spare->bytes < wanted) continue;
    if (best == spares_.end() || spare->bytes < best->bytes) best = spare;
  }
  if (wanted == 0 || best == spares_.end()) return nullptr;
  std::byte* memory = best->begin;
  best->begin += wanted;
  best->bytes -= wanted;
  return memory;
}

void StateStore::grant_host(std::vector<Wish>& wishes, const Parameter* owner) {
  std::vector<Spare> spares_before = spares_;
  std::vector<void*> reused(wishes.size());
  try {
    for (size_t i = 0; i < wishes.size(); ++i) {
      Wish& wish = wishes[i];
      if (owner != nullptr) reused[i] = take_spare(owner, wish.bytes);
      if (reused[i] != nullptr) continue;
      wish.array = host_memory_.reserve(wish.bytes, wish.kind, wish.transfer);
    }
    host_memory_.commit();
  } catch (...) {
    host_memory_.rollback();  // or the next commit would map what nobody wants any more
    spares_ = std::move(spares_before);
    throw;
  }
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (reused[i] != nullptr) std::memset(reused[i], 0, wishes[i].bytes);
    *wishes[i].pointer = reused[i] != nullptr ? reused[i] : wishes[i].array.data();
  }
}

void StateStore::grant_device(std::vector<Wish>& wishes, std::shared_ptr<void>& owner) {
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
  owner = std::shared_ptr<void>(memory.get(), [memory, before = std::move(owner)](void*) {});
  device_state_bytes_ += bytes;
}

void StateStore::grant_resident(Parameter& parameter, std::span<const double> hyper) {
  auto wishes = wishes_of(parameter, hyper);
  const auto states = std::stable_partition(
      wishes.begin(), wishes.end(), [](const Wish& w) { return w.kind == MemoryKind::kMasters; });
  std::vector<Wish> state_wishes(states, wishes.end());
  wishes.erase(states, wishes.end());
  grant_device(wishes, parameter.device_master);
  grant_device(state_wishes, parameter.device_states);
}

void StateStore::retire_host(const Parameter& parameter,
                             const std::array<StateArray, kMaxStates>& states) {
  const ParameterSpec& spec = parameter.spec;
  const auto add = [&](void* begin, size_t bytes) {
    if (begin == nullptr || bytes == 0) return;
    spares_.push_back(
        {&parameter, static_cast<std::byte*>(begin), round_up(bytes, kHostAlignment)});
  };
  for (size_t i = 0; i < kMaxStates; ++i) {
    add(states[i].codes, spec.formats[i].code_bytes(spec.elements));
    add(states[i].scales, spec.formats[i].scale_count(spec.elements) * sizeof(float));
  }
  // Neighbours become one, or what was cut into codes and scales would never hold fp32 again.
  std::ranges::sort(spares_, {}, &Spare::begin);
  std::vector<Spare> merged;
  for (const Spare& spare : spares_) {
    const bool follows = !merged.empty() && merged.back().owner == spare.owner &&
                         merged.back().begin + merged.back().bytes == spare.begin;
    if (follows) {
      merged.back().bytes += spare.bytes;
    } else if (spare.bytes > 0) {
      merged.push_back(spare);
    }
  }
  spares_ = std::move(merged);
}

void StateStore::remake_states(Parameter& parameter,
                               const std::array<StateFormat, kMaxStates>& formats) {
  const std::lock_guard lock(mutex_);
  std::array<StateArray, kMaxStates> fresh = {};
  std::vector<Wish> wishes;
  size_t old_device_bytes = 0;
  for (size_t i = 0; i < kMaxStates; ++i) {
    if (parameter.states[i].codes == nullptr) continue;
    add_state_wishes(formats[i], parameter.spec.elements, parameter.is_streamed(), fresh[i],
                     wishes);
    const StateFormat& old = parameter.spec.formats[i];
    old_device_bytes +=
        round_up(old.code_bytes(parameter.spec.elements), kDeviceAlignment) +
        round_up(old.scale_count(parameter.spec.elements) * sizeof(float), kDeviceAlignment);
  }
  if (parameter.has_host_state()) {
    std::vector<Spare> spares_before = spares_;
    retire_host(parameter, parameter.states);
    retire_host(parameter, parameter.second.states);
    try {
      grant_host(wishes, &parameter);
    } catch (...) {
      spares_ = std::move(spares_before);  // the old arrays stay in use
      throw;
    }
  } else {
    std::shared_ptr<void> memory;
    grant_device(wishes, memory);
    parameter.device_states = std::move(memory);
    device_state_bytes_ -= old_device_bytes;
  }
  parameter.states = fresh;
  parameter.second.states = {};  // their memory is spare now; the next early update wants new ones
  parameter.spec.formats = formats;
}

SegmentSums StateStore::add(std::span<const ParameterPtr> batch) {
  const std::lock_guard lock(mutex_);
  std::vector<Wish> wishes;
  SegmentSums sums;
  for (const ParameterPtr& parameter : batch) {
    const size_t segments = norm_segments(parameter->spec.elements);
    parameter->host_sums.resize(segments);
    if (parameter->spec.memory == Memory::kDevice) sums.count += segments;
    if (!parameter->has_host_state()) continue;
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
      if (parameter->has_host_state()) continue;
      grant_resident(*parameter, parameter->spec.hyper);
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
  if (!parameter.has_host_state()) {
    grant_resident(parameter, hyper);
    return;
  }
  auto wishes = wishes_of(parameter, hyper);
  if (!wishes.empty()) grant_host(wishes);
}

void StateStore::ensure_shadows(std::span<const ParameterPtr> parameters) {
  const std::lock_guard lock(mutex_);
  for (const ParameterPtr& parameter : parameters) {
    if (!parameter->is_streamed() || parameter->shadow != nullptr) continue;
    const size_t bytes = parameter->spec.elements * bytes_of(parameter->spec.type);
    parameter->shadow = allocator_(bytes);
    shadow_bytes_ += bytes;
  }
}

std::vector<StateStore::Wish> StateStore::second_wishes_of(Parameter& parameter) {
  const ParameterSpec& spec = parameter.spec;
  std::vector<Wish> wishes;
  if (parameter.master != nullptr && parameter.second.master == nullptr) {
    wishes.push_back({padded_elements(spec.elements) * bytes_of(spec.master_format),
                      MemoryKind::kMasters, true, &parameter.second.master});
  }
  for (size_t i = 0; i < kMaxStates; ++i) {
    StateArray& second = parameter.second.states[i];
    if (parameter.states[i].codes == nullptr || second.codes != nullptr) continue;
    add_state_wishes(spec.formats[i], spec.elements, true, second, wishes);
  }
  return wishes;
}

bool StateStore::ensure_second_copies(std::span<const ParameterPtr> parameters) {
  if (!memory_warning_.empty()) return false;
  try {
    ensure_shadows(parameters);
    const std::lock_guard lock(mutex_);
    std::vector<Wish> all;  // granted at once: slabs are large
    for (const ParameterPtr& parameter : parameters) {
      if (!parameter->is_streamed()) continue;
      auto wishes = second_wishes_of(*parameter);
      const bool has_spare = std::ranges::count(spares_, parameter.get(), &Spare::owner) > 0;
      if (has_spare) {
        grant_host(wishes, parameter.get());
      } else {
        all.insert(all.end(), wishes.begin(), wishes.end());
      }
    }
    if (!all.empty()) grant_host(all);
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex_);
    memory_warning_ = std::string(
                          "[Engine] updates do not begin in backward, because there is no "
                          "memory for second copies (") +
                      error.what() + "); give fewer streamed parameters or a smaller state format";
    return false;
  }
  return true;
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
  return memory_warning_.empty() ? host_memory_.warning() : memory_warning_;
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
          .device_workspace = device_workspace_bytes_ + shadow_bytes_ + ring_bytes_};
}

}  // namespace outboard
