// Memory of masters and states; see state_store.h.
#include "offload/state_store.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "offload/memory/free_memory.h"
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

bool has_states(const Parameter& parameter, std::span<const double> hyper) {
  const RuleInfo& rule = rule_info(*parameter.spec.rule);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    if (needs_state(rule, i, hyper) && parameter.states[i].codes == nullptr) return false;
  }
  return true;
}

StateStore::StateStore(const EngineOptions& options, std::shared_ptr<Device> device,
                       Engine::Allocator allocator)
    : device_(std::move(device)),
      allocator_(std::move(allocator)),
      spare_host_bytes_(options.spare_host_bytes),
      host_memory_(device_, options.pin_memory) {
  if (!allocator_ && device_) {
    allocator_ = [device = device_](size_t bytes) { return device->allocate(bytes); };
  }
}

std::vector<StateStore::Wish> StateStore::image_wishes_of(Parameter& parameter) {
  if (parameter.host_weight != nullptr) return {};
  const size_t bytes = padded_elements(parameter.spec.elements) * bytes_of(parameter.spec.type);
  return {{bytes, MemoryKind::kWeights, true, &parameter.host_weight},
          {bytes, MemoryKind::kGradients, true, &parameter.gradient_store}};
}

std::vector<StateStore::Wish> StateStore::wishes_of(Parameter& parameter,
                                                    std::span<const double> hyper) const {
  const ParameterSpec& spec = parameter.spec;
  const size_t padded = padded_elements(spec.elements);
  std::vector<Wish> wishes;
  if (parameter.is_offloaded()) wishes = image_wishes_of(parameter);
  if (bytes_of(spec.master_format) > 0 && parameter.master == nullptr) {
    wishes.push_back({padded * bytes_of(spec.master_format), MemoryKind::kMasters,
                      parameter.is_streamed(), &parameter.master});
  }
  if (!spec.rule) return wishes;
  const RuleInfo& rule = rule_info(*spec.rule);
  for (size_t i = 0; i < rule.states.size(); ++i) {
    if (!needs_state(rule, i, hyper) || parameter.states[i].codes != nullptr) continue;
    add_state_wishes(spec.formats[i], state_elements(spec, i), parameter.is_streamed(),
                     parameter.states[i], wishes);
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

void StateStore::grant_host(std::vector<Wish>& wishes, const Parameter* owner) {
  SpareMemory spares_before = spares_;
  std::vector<void*> reused(wishes.size());
  try {
    for (size_t i = 0; i < wishes.size(); ++i) {
      Wish& wish = wishes[i];
      if (owner != nullptr) reused[i] = spares_.take(*owner, wish.bytes);
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
    if (reused[i] != nullptr) {
      std::memset(reused[i], 0, wishes[i].bytes);
      host_memory_.count(wishes[i].kind, wishes[i].bytes);
    }
    *wishes[i].pointer = reused[i] != nullptr ? reused[i] : wishes[i].array.data();
  }
}

void StateStore::grant_host_to(std::span<Parameter* const> parameters,
                               const std::function<std::vector<Wish>(Parameter&)>& wishes_of) {
  std::vector<Wish> all;  // granted at once: slabs are large
  for (Parameter* const parameter : parameters) {
    auto wishes = wishes_of(*parameter);
    if (spares_.has(*parameter)) {
      grant_host(wishes, parameter);
    } else {
      all.insert(all.end(), wishes.begin(), wishes.end());
    }
  }
  if (!all.empty()) grant_host(all);
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

std::vector<StateStore::Leftover> StateStore::leftovers(
    const ParameterSpec& spec, const std::array<StateArray, kMaxStates>& states) {
  std::vector<Leftover> arrays;
  for (size_t i = 0; i < kMaxStates; ++i) {
    const StateFormat& format = spec.formats[i];
    const size_t elements = state_elements(spec, i);
    arrays.push_back({states[i].codes, format.code_bytes(elements), MemoryKind::kState});
    arrays.push_back(
        {states[i].scales, format.scale_count(elements) * sizeof(float), MemoryKind::kState});
  }
  std::erase_if(arrays, [](const Leftover& array) { return array.begin == nullptr; });
  return arrays;
}

void StateStore::keep(const Parameter& owner, const std::vector<Leftover>& arrays) {
  for (const Leftover& array : arrays) {
    if (array.bytes == 0) continue;
    spares_.add(owner, array.begin, array.bytes, host_memory_.slab_of(array.begin));
  }
}

void StateStore::discount(const std::vector<Leftover>& arrays) {
  for (const Leftover& array : arrays) host_memory_.discount(array.kind, array.bytes);
}

void StateStore::remake_states(Parameter& parameter,
                               const std::array<StateFormat, kMaxStates>& formats) {
  const std::lock_guard lock(mutex_);
  std::array<StateArray, kMaxStates> fresh = {};
  std::vector<Wish> wishes;
  size_t old_device_bytes = 0;
  for (size_t i = 0; i < kMaxStates; ++i) {
    if (parameter.states[i].codes == nullptr) continue;
    const size_t elements = state_elements(parameter.spec, i);
    add_state_wishes(formats[i], elements, parameter.is_streamed(), fresh[i], wishes);
    const StateFormat& old = parameter.spec.formats[i];
    old_device_bytes += round_up(old.code_bytes(elements), kDeviceAlignment) +
                        round_up(old.scale_count(elements) * sizeof(float), kDeviceAlignment);
  }
  if (parameter.has_host_state()) {
    SpareMemory spares_before = spares_;
    auto old = leftovers(parameter.spec, parameter.states);
    for (const auto& array : leftovers(parameter.spec, parameter.second.states)) {
      old.push_back(array);
    }
    keep(parameter, old);
    try {
      grant_host(wishes, &parameter);
    } catch (...) {
      spares_ = std::move(spares_before);  // the old arrays stay in use
      throw;
    }
    discount(old);
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

void StateStore::drop_second_copy(Parameter& parameter) {
  const ParameterSpec& spec = parameter.spec;
  auto arrays = leftovers(spec, parameter.second.states);
  if (parameter.second.master != nullptr) {
    arrays.push_back({parameter.second.master,
                      padded_elements(spec.elements) * bytes_of(spec.master_format),
                      MemoryKind::kMasters});
  }
  keep(parameter, arrays);
  discount(arrays);
  parameter.second = {};
  if (parameter.shadow == nullptr) return;
  shadow_bytes_ -= spec.elements * bytes_of(spec.type);
  parameter.shadow = nullptr;
}

void StateStore::ensure_images(std::span<Parameter* const> parameters) {
  const std::lock_guard lock(mutex_);
  for (Parameter* const parameter : parameters) drop_second_copy(*parameter);
  grant_host_to(parameters, [](Parameter& parameter) { return image_wishes_of(parameter); });
}

void StateStore::drop_images(std::span<Parameter* const> parameters) {
  const std::lock_guard lock(mutex_);
  std::set<size_t> slabs;
  for (Parameter* const parameter : parameters) {
    const size_t padded = padded_elements(parameter->spec.elements);
    const size_t bytes = padded * bytes_of(parameter->spec.type);
    std::vector<Leftover> arrays{{parameter->host_weight, bytes, MemoryKind::kWeights},
                                 {parameter->gradient_store, bytes, MemoryKind::kGradients}};
    if (parameter->accumulator != nullptr) {
      arrays.push_back({parameter->accumulator, padded * sizeof(float), MemoryKind::kAccumulators});
    }
    keep(*parameter, arrays);
    discount(arrays);
    parameter->host_weight = parameter->gradient_store = nullptr;
    parameter->accumulator = nullptr;
    // All that is or may be copied from now on.
    slabs.merge(spares_.slabs_of(*parameter));
    if (parameter->master != nullptr) slabs.insert(host_memory_.slab_of(parameter->master));
    for (const Leftover& array : leftovers(parameter->spec, parameter->states)) {
      if (array.bytes > 0) slabs.insert(host_memory_.slab_of(array.begin));
    }
  }
  for (const size_t slab : slabs) host_memory_.pin_slab(slab);
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
    add_state_wishes(spec.formats[i], state_elements(spec, i), true, second, wishes);
  }
  return wishes;
}

void StateStore::check_spare_memory(std::span<Parameter* const> streamed) const {
  size_t bytes = 0;
  for (Parameter* const parameter : streamed) {
    for (const Wish& wish : second_wishes_of(*parameter)) bytes += wish.bytes;
  }
  if (bytes == 0) return;
  const std::optional<size_t> free = free_host_bytes();
  if (!free || (bytes <= *free && *free - bytes >= spare_host_bytes_)) return;
  fail(ErrorKind::kMemory, "StateStore", "second copies take ", bytes,
       " bytes of host memory, of which ", *free, " are left; ", spare_host_bytes_,
       " are to stay free (spare_host_bytes)");
}

bool StateStore::ensure_second_copies(std::span<const ParameterPtr> parameters) {
  if (!memory_warning_.empty()) return false;
  std::vector<Parameter*> streamed;
  for (const ParameterPtr& parameter : parameters) {
    if (parameter->is_streamed()) streamed.push_back(parameter.get());
  }
  try {
    check_spare_memory(streamed);
    ensure_shadows(parameters);
    const std::lock_guard lock(mutex_);
    grant_host_to(streamed, second_wishes_of);
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
  std::vector<Parameter*> lacking;
  for (const ParameterPtr& parameter : parameters) {
    const bool has_place = parameter->accumulator != nullptr || parameter->spec.type == DType::kF32;
    if (parameter->is_offloaded() && !has_place) lacking.push_back(parameter.get());
  }
  grant_host_to(lacking, [](Parameter& parameter) -> std::vector<Wish> {
    return {{padded_elements(parameter.spec.elements) * sizeof(float), MemoryKind::kAccumulators,
             false, reinterpret_cast<void**>(&parameter.accumulator)}};
  });
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
          .host_spare = spares_.bytes(),
          .host_pinned = host_memory_.pinned_bytes(),
          .device_state = device_state_bytes_,
          .device_workspace = device_workspace_bytes_ + shadow_bytes_ + ring_bytes_};
}

}  // namespace outboard
