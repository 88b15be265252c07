// Updating pieces on the device; see stream_lane.h.
#include "offload/stream_lane.h"

#include <algorithm>

namespace outboard {

namespace {

// Arrays of a slot start at multiples of this: whole 16-byte vectors and cache lines.
constexpr size_t kAlignment = 256;
// A ring stays below this, unless two slots alone are larger.
constexpr size_t kMostRingBytes = size_t{1} << 30;

// What the forward needs first comes first.
std::pair<size_t, size_t> order_of(const StreamWorkPtr& work) {
  return {work->parameter->rank, work->index};
}

size_t master_bytes(const ParameterSpec& spec, size_t elements) {
  return padded_elements(elements) * bytes_of(spec.master_format);
}

// Values that state `i` holds of a piece. Of rows and columns a piece has all: it is the parameter.
size_t held_elements(const ParameterSpec& spec, size_t i, size_t elements) {
  return elements == spec.elements ? state_elements(spec, i) : elements;
}

}  // namespace

StreamLane::StreamLane(std::shared_ptr<Device> device, Progress& progress, Trace& trace,
                       size_t most_slots, Driver::FailureHandler on_failure)
    : device_(std::move(device)),
      progress_(progress),
      trace_(trace),
      most_slots_(std::max<size_t>(most_slots, 2)),
      up_(device_->make_copy_queue()),
      down_(device_->make_copy_queue()),
      kernels_(device_->make_stream()),
      thread_(std::move(on_failure)) {}

size_t StreamLane::slot_bytes(const Parameter& parameter, size_t elements) {
  const ParameterSpec& spec = parameter.spec;
  size_t bytes = round_up(master_bytes(spec, elements), kAlignment);
  for (size_t i = 0; i < kMaxStates; ++i) {
    if (parameter.states[i].codes == nullptr) continue;
    const size_t held = held_elements(spec, i, elements);
    bytes += round_up(spec.formats[i].code_bytes(held), kAlignment);
    bytes += round_up(spec.formats[i].scale_count(held) * sizeof(float), kAlignment);
  }
  return std::max(bytes, kAlignment);  // a piece without either takes a slot as well
}

size_t StreamLane::reserve(size_t bytes, const Engine::Allocator& allocate, ComputeStream stream) {
  for (Slot& slot : slots_) {
    if (slot.is_free != nullptr) slot.is_free->synchronize();
  }
  const size_t count = std::clamp<size_t>(kMostRingBytes / bytes, 2, most_slots_);
  memory_ = allocate(count * bytes);
  // Order: the memory may have been filled on the caller's stream; nothing is copied into it
  // before.
  up_->wait(device_->record(stream));
  slot_bytes_ = bytes;
  slots_.assign(count, {});
  for (size_t i = 0; i < count; ++i) {
    slots_[i].memory = static_cast<std::byte*>(memory_.get()) + i * bytes;
  }
  next_slot_ = 0;
  return count * bytes;
}

void StreamLane::release() {
  memory_ = nullptr;
  slots_.clear();
  slot_bytes_ = 0;
  next_slot_ = 0;
}

void StreamLane::after(const EventPtr& event) {
  thread_.post([this, event] { device_->wait(kernels_, event); });
}

void StreamLane::push(const StreamWorkPtr& work) {
  {
    const std::lock_guard lock(mutex_);
    coming_.push_back(work);
  }
  thread_.post([this] { run_next(); });
}

void StreamLane::accept(const std::vector<StreamWorkPtr>& works, const EventPtr& weight_is_free) {
  {
    const std::lock_guard lock(mutex_);
    for (const StreamWorkPtr& work : works) {
      work->weight_is_free = weight_is_free;
      work->is_accepted = true;
      if (work->phase == StreamWork::Phase::kStarted) accepted_.push_back(work);
    }
  }
  thread_.post([this] { run_next(); });
}

void StreamLane::cancel(const std::vector<StreamWorkPtr>& works) {
  const std::lock_guard lock(mutex_);
  for (const StreamWorkPtr& work : works) {
    if (work->phase == StreamWork::Phase::kWaiting) work->phase = StreamWork::Phase::kCancelled;
  }
}

EventPtr StreamLane::flush(bool and_state) {
  return thread_
      .submit([this, and_state] {
        if (!and_state) return device_->record(kernels_);
        down_->wait(device_->record(kernels_));
        EventPtr behind = down_->record();
        let_go_of_gradients(true);
        return behind;
      })
      .get();
}

void StreamLane::run_next() {
  replace_accepted();
  if (const StreamWorkPtr work = take()) enqueue(*work);
  let_go_of_gradients(false);
}

// The host runs ahead of the device, so most work comes long before its gradient exists. Taken by
// rank alone, a gradient that comes last would hold up the ring for all others; taken in the order
// of coming alone, the weight that the forward needs first would come last.
void StreamLane::sort_arrived() {
  while (!coming_.empty()) {
    const StreamWorkPtr& first = coming_.front();
    if (first->phase != StreamWork::Phase::kCancelled) {
      if (first->gradient_ready != nullptr && !first->gradient_ready->is_done()) return;
      ready_.emplace(order_of(first), first);
    }
    coming_.pop_front();
  }
}

StreamWorkPtr StreamLane::take() {
  const std::lock_guard lock(mutex_);
  sort_arrived();
  StreamWorkPtr work;
  while (work == nullptr && !ready_.empty()) {
    if (ready_.begin()->second->phase == StreamWork::Phase::kWaiting) {
      work = ready_.begin()->second;
    }
    ready_.erase(ready_.begin());
  }
  if (work == nullptr && !coming_.empty()) {
    work = coming_.front();
    coming_.pop_front();
  }
  if (work != nullptr) work->phase = StreamWork::Phase::kStarted;
  return work;
}

// Before any further piece: these weights are there, and the forward may be waiting for them.
void StreamLane::replace_accepted() {
  std::vector<StreamWorkPtr> accepted;
  {
    const std::lock_guard lock(mutex_);
    accepted.swap(accepted_);
  }
  std::ranges::stable_sort(accepted, {}, order_of);
  for (const StreamWorkPtr& work : accepted) replace_weight(*work);
}

StreamLane::Slot& StreamLane::next_slot() {
  Slot& slot = slots_[next_slot_];
  next_slot_ = (next_slot_ + 1) % slots_.size();
  // The brake: as many pieces are under way as there are slots, so what is needed first can still
  // overtake what is not under way.
  if (slot.is_free != nullptr) slot.is_free->synchronize();
  slot.gradient_owner = nullptr;
  return slot;
}

void StreamLane::let_go_of_gradients(bool all) {
  for (Slot& slot : slots_) {
    if (slot.gradient_owner == nullptr) continue;
    if (all) slot.is_free->synchronize();
    if (all || slot.is_free->is_done()) slot.gradient_owner = nullptr;
  }
}

std::vector<StreamLane::Part> StreamLane::place(StreamWork& work, std::byte* memory) {
  const ParameterSpec& spec = work.parameter->spec;
  const size_t first = work.update.element_offset;
  const size_t elements = work.update.elements;
  std::vector<Part> parts;
  const auto add = [&](void* from, void* to, size_t offset, size_t bytes) -> void* {
    if (bytes == 0) return nullptr;
    parts.push_back({memory, static_cast<std::byte*>(from) + offset,
                     static_cast<std::byte*>(to) + offset, bytes});
    memory += round_up(bytes, kAlignment);
    return parts.back().device;
  };
  work.update.master = add(work.from.master, work.to.master, master_bytes(spec, first),
                           master_bytes(spec, elements));
  for (size_t i = 0; i < kMaxStates; ++i) {
    const StateArray& from = work.from.states[i];
    const StateArray& to = work.to.states[i];
    if (from.codes == nullptr) continue;
    const StateFormat& format = spec.formats[i];
    const size_t held = held_elements(spec, i, elements);
    work.update.codes[i] =
        add(from.codes, to.codes, format.code_bytes(first), format.code_bytes(held));
    work.update.scales[i] =
        static_cast<float*>(add(from.scales, to.scales, format.scale_count(first) * sizeof(float),
                                format.scale_count(held) * sizeof(float)));
  }
  return parts;
}

void StreamLane::enqueue(StreamWork& work) {
  Slot& slot = next_slot();
  const std::vector<Part> parts = place(work, slot.memory);
  const EventPtr copied_in = copy_in(work, slot, parts);
  const EventPtr updated = run_kernel(work, copied_in);
  slot.is_free = copy_out(work, updated, parts);
  slot.gradient_owner = std::move(work.gradient_owner);
  bool is_accepted = false;
  {
    const std::lock_guard lock(mutex_);
    is_accepted = work.is_accepted;
  }
  if (!is_accepted) return;  // accept() saw, or will see, that this has started
  if (work.shadow != nullptr) {
    replace_weight(work);
  } else {
    work.is_finished = true;
    progress_.end(*work.parameter, updated);
  }
}

EventPtr StreamLane::copy_in(const StreamWork& work, const Slot& slot,
                             const std::vector<Part>& parts) {
  size_t bytes = 0;
  // Order: the slot's last copy out has read it (next_slot waited), and the piece's state of the
  // last step is on the host.
  up_->wait(slot.is_free);
  up_->wait(work.parameter->returned[work.index]);
  const EventPtr before = trace_.is_on() ? up_->record() : nullptr;
  for (const Part& part : parts) {
    up_->copy_to_device(part.device, part.from, part.bytes);
    bytes += part.bytes;
  }
  EventPtr copied = up_->record();
  if (before != nullptr) {
    trace_.device("state up", work.parameter->spec.name, before, copied, bytes);
  }
  return copied;
}

EventPtr StreamLane::run_kernel(StreamWork& work, const EventPtr& copied_in) {
  // Order: the kernel reads what was copied in and the gradient, and writes the weight that
  // backward may still be reading (or its shadow, which nobody reads).
  device_->wait(kernels_, copied_in);
  device_->wait(kernels_, work.gradient_ready);
  ResidentUpdate update = work.update;
  if (work.shadow == nullptr) {
    device_->wait(kernels_, work.weight_is_free);
  } else {
    if (!work.is_shadow_filled) update.old_weight = update.weight;
    update.weight = work.shadow;
  }
  const EventPtr before = trace_.is_on() ? device_->record(kernels_) : nullptr;
  device_->update_resident(kernels_, {&update, 1});
  EventPtr updated = device_->record(kernels_);
  if (before != nullptr) {
    trace_.device("device update", work.parameter->spec.name, before, updated);
  }
  return updated;
}

EventPtr StreamLane::copy_out(const StreamWork& work, const EventPtr& updated,
                              const std::vector<Part>& parts) {
  size_t bytes = 0;
  down_->wait(updated);
  const EventPtr before = trace_.is_on() ? down_->record() : nullptr;
  for (const Part& part : parts) {
    down_->copy_to_host(part.to, part.device, part.bytes);
    bytes += part.bytes;
  }
  EventPtr copied = down_->record();
  if (before != nullptr) {
    trace_.device("state down", work.parameter->spec.name, before, copied, bytes);
  }
  work.parameter->returned[work.index] = copied;
  return copied;
}

void StreamLane::replace_weight(StreamWork& work) {
  if (std::exchange(work.is_finished, true)) return;  // accepted while it was being enqueued
  // Order: behind the kernel, in the same stream; and the forward and backward that use the old
  // weight are done.
  device_->wait(kernels_, work.weight_is_free);
  device_->copy_on_device(kernels_, work.update.weight, work.shadow,
                          work.update.elements * bytes_of(work.update.type));
  progress_.end(*work.parameter, device_->record(kernels_));
}

}  // namespace outboard
