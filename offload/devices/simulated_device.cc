// The fake device: copies are memcpy on threads of their own, kernels are the CPU's. It proves the
// order of hand-offs, so it is strict where CUDA is: ranges, registrations, failures that stick.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "cpu_kernels/factors.h"
#include "cpu_kernels/gradient_math.h"
#include "cpu_kernels/measure.h"
#include "cpu_kernels/step.h"
#include "offload/devices/simulated_stream.h"
#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard {
namespace {

constexpr const char* kWho = "SimulatedDevice";
constexpr size_t kAllocationAlignment = 256;  // what cudaMalloc promises

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Registered host ranges. Thread safe.
class PinnedRanges {
 public:
  // False if a byte of it is registered already.
  bool add(const void* host, size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto next = ranges_.upper_bound(address(host));
    if (next != ranges_.end() && next->first < address(host) + bytes) return false;
    if (next != ranges_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second > address(host)) return false;
    }
    ranges_.emplace_hint(next, address(host), bytes);
    return true;
  }

  void remove(const void* host) {
    const std::lock_guard lock(mutex_);
    ranges_.erase(address(host));
  }

  // CUDA refuses copies that begin in a registered range and leave it.
  [[nodiscard]] bool leaves_range(const void* host, size_t bytes) const {
    const std::lock_guard lock(mutex_);
    const auto next = ranges_.upper_bound(address(host));
    if (next == ranges_.begin()) return false;
    const auto range = std::prev(next);
    const uintptr_t end = range->first + range->second;
    return address(host) < end && address(host) + bytes > end;
  }

 private:
  mutable std::mutex mutex_;
  std::map<uintptr_t, size_t> ranges_;
};

void check_copy(const void* target, const void* source, const void* host, size_t bytes,
                const PinnedRanges& pinned) {
  if (target == nullptr || source == nullptr) {
    fail(ErrorKind::kDevice, kWho, "a copy of ", bytes, " bytes has a null ",
         target == nullptr ? "target" : "source", "; give memory of that size");
  }
  if (address(target) < address(source) + bytes && address(source) < address(target) + bytes) {
    fail(ErrorKind::kDevice, kWho, "source and target of a copy of ", bytes,
         " bytes overlap; copy between separate ranges");
  }
  if (pinned.leaves_range(host, bytes)) {
    fail(ErrorKind::kDevice, kWho, "a copy of ", bytes,
         " bytes leaves the registered range it begins in; register what is copied as one range");
  }
}

class SimulatedQueue final : public CopyQueue {
 public:
  SimulatedQueue(const SimulatedDeviceOptions& options, uint64_t number,
                 std::shared_ptr<const PinnedRanges> pinned)
      : poisons_(options.poison_targets), pinned_(std::move(pinned)), stream_(options, number) {}

  void wait(const EventPtr& event) override { stream_.wait(event); }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    copy(host, device, host, bytes);
  }
  void copy_to_device(void* device, const void* host, size_t bytes) override {
    copy(device, host, host, bytes);
  }
  [[nodiscard]] EventPtr record() override { return stream_.record(); }

 private:
  void copy(void* target, const void* source, const void* host, size_t bytes) {
    if (bytes == 0) return;
    stream_.enqueue(
        [=, poisons = poisons_, pinned = pinned_] {
          check_copy(target, source, host, bytes, *pinned);
          // In the copy's turn and not when it is enqueued: until then earlier work, rightly, still
          // uses the target.
          if (poisons) std::memset(target, 0xFF, bytes);
        },
        [=] { std::memcpy(target, source, bytes); });
  }

  bool poisons_;
  std::shared_ptr<const PinnedRanges> pinned_;
  SimulatedStream stream_;  // last: its thread ends before the rest goes
};

// The CPU's kernels count elements from the parameter's first; a piece's pointers are to its own.
template <class T>
T* before(T* pointer, size_t bytes) {
  return pointer == nullptr ? nullptr
                            : reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) - bytes);
}

cpu::ParameterUpdate update_of(const ResidentUpdate& update) {
  const size_t skipped = update.element_offset;
  cpu::ParameterUpdate parameter{
      .rule = update.rule,
      .scalars = update.scalars,
      .elements = skipped + update.elements,
      .rows = update.rows,
      .gradient = before(update.gradient, skipped * bytes_of(update.type)),
      .gradient_type = update.type,
      .weight = before(update.weight, skipped * bytes_of(update.type)),
      .weight_type = update.type,
      .master_format = update.master_format,
      .master = before(update.master, skipped * bytes_of(update.master_format)),
      .states = {},
      .formats = update.formats,
      .random_key = {.low = update.random_key_low, .high = update.random_key_high},
      .step = update.step};
  for (size_t i = 0; i < kMaxStates; ++i) {
    const StateFormat& format = update.formats[i];
    const size_t scale_bytes = format.scale_count(skipped) * sizeof(float);
    parameter.states[i] = {.codes = before(update.codes[i], format.code_bytes(skipped)),
                           .scales = before(update.scales[i], scale_bytes),
                           .block_elements = format.block_elements};
  }
  return parameter;
}

void run_piece(cpu::ParameterUpdate update, size_t first) {
  if (rule_info(update.rule).with_norms != nullptr) {
    cpu::ParameterNorms norms(update);
    norms.run(0, update.elements);
    update.scalars = norms.scalars();
  }
  if (rule_info(update.rule).factor_scalars != nullptr) {
    update.scalars = cpu::factored_scalars(update);
  }
  cpu::ResolvedUpdate(update).run(first, update.elements);
}

// Scalars and step of an update, formed from what device memory holds when its turn has come.
cpu::ParameterUpdate with_device_numbers(cpu::ParameterUpdate update, int64_t* step,
                                         const double* hyper) {
  const RuleInfo& rule = rule_info(update.rule);
  update.step = static_cast<uint32_t>(++*step);
  update.scalars = rule.scalars({hyper, rule.hyper_parameters.size()}, *step, 1.0);
  return update;
}

class Fake final : public SimulatedDevice {
 public:
  explicit Fake(const SimulatedDeviceOptions& options)
      : options_(options), pinned_(std::make_shared<PinnedRanges>()) {}

  [[nodiscard]] std::unique_ptr<CopyQueue> make_copy_queue() override {
    const std::lock_guard lock(mutex_);
    return std::make_unique<SimulatedQueue>(options_, streams_made_++, pinned_);
  }

  [[nodiscard]] ComputeStream make_stream() override {
    const std::lock_guard lock(mutex_);
    streams_.push_back(std::make_unique<SimulatedStream>(options_, streams_made_++));
    return streams_.back().get();
  }

  void submit(ComputeStream stream, std::function<void()> work) override {
    if (stream == nullptr) {
      work();
    } else {
      find(stream).enqueue({}, std::move(work));
    }
  }

  [[nodiscard]] EventPtr record(ComputeStream stream) override {
    if (stream != nullptr) return find(stream).record();
    auto event = std::make_shared<SimulatedEvent>();
    event->complete({});
    return event;
  }

  void wait(ComputeStream stream, const EventPtr& event) override {
    if (stream != nullptr) {
      find(stream).wait(event);
    } else if (event != nullptr) {
      event->synchronize();
    }
  }

  [[nodiscard]] double seconds_between(const Event& first, const Event& second) const override {
    const auto* const begin = dynamic_cast<const SimulatedEvent*>(&first);
    const auto* const end = dynamic_cast<const SimulatedEvent*>(&second);
    if (begin == nullptr || end == nullptr) return 0;
    return std::chrono::duration<double>(end->time() - begin->time()).count();
  }

  void sum_of_squares(ComputeStream stream, const void* gradient, DType type, size_t elements,
                      float* device_sums) override {
    if (elements == 0) return;
    submit(stream, [=] { cpu::sum_of_squares(gradient, type, elements, device_sums); });
  }

  void update_resident(ComputeStream stream, std::span<const ResidentUpdate> updates) override {
    for (const ResidentUpdate& update : updates) {
      if (update.elements == 0) continue;
      if (update.old_weight != nullptr) {
        copy_on_device(stream, update.weight, update.old_weight,
                       update.elements * bytes_of(update.type));
      }
      submit(stream, [parameter = update_of(update), first = update.element_offset,
                      step = update.device_step, hyper = update.device_hyper] {
        run_piece(step == nullptr ? parameter : with_device_numbers(parameter, step, hyper), first);
      });
    }
  }

  void copy_on_device(ComputeStream stream, void* target, const void* source,
                      size_t bytes) override {
    if (bytes > 0) submit(stream, [=] { std::memcpy(target, source, bytes); });
  }

  void write_to_host(ComputeStream stream, float* host, const float* device,
                     size_t count) override {
    if (count > 0) submit(stream, [=] { std::memcpy(host, device, count * sizeof(float)); });
  }

  void poison(ComputeStream stream, void* target, size_t bytes) override {
    if (bytes > 0) submit(stream, [=] { std::memset(target, 0xFF, bytes); });
  }

  [[nodiscard]] std::shared_ptr<void> allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    constexpr std::align_val_t kAlignment{kAllocationAlignment};
    void* const memory = ::operator new(bytes, kAlignment);
    std::memset(memory, 0, bytes);
    return {memory, [](void* owned) { ::operator delete(owned, kAlignment); }};
  }

  [[nodiscard]] bool pin(void* host, size_t bytes) override {
    return bytes > 0 && pinned_->add(host, bytes);
  }
  void unpin(void* host, size_t) noexcept override { pinned_->remove(host); }

 private:
  SimulatedStream& find(ComputeStream stream) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(streams_.begin(), streams_.end(),
                                    [&](const auto& other) { return other.get() == stream; });
    if (found == streams_.end()) {
      fail(ErrorKind::kDevice, kWho, "stream ", stream, " is not one of this device's ",
           streams_.size(), "; use make_stream()");
    }
    return **found;
  }

  SimulatedDeviceOptions options_;
  std::shared_ptr<PinnedRanges> pinned_;
  std::mutex mutex_;  // guards the two below
  uint64_t streams_made_ = 0;
  std::vector<std::unique_ptr<SimulatedStream>> streams_;
};

}  // namespace

std::shared_ptr<SimulatedDevice> make_simulated_device(const SimulatedDeviceOptions& options) {
  return std::make_shared<Fake>(options);
}

}  // namespace outboard
