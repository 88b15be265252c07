// A Device that only registers memory: it grants or refuses as a test says, and remembers.
#ifndef OUTBOARD_TESTS_OFFLOAD_PINNING_DEVICE_H_
#define OUTBOARD_TESTS_OFFLOAD_PINNING_DEVICE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "offload/memory/host_memory.h"
#include "outboard/device.h"

namespace outboard {

/// Pins as `answer` says and remembers what is registered.
class PinningDevice final : public Device {
 public:
  using Range = std::pair<uintptr_t, size_t>;  // a number: failures print it
  std::function<bool(size_t calls)> answer = [](size_t) { return true; };

  [[nodiscard]] bool pin(void* host, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    if (!answer(++calls_)) return false;
    ranges_.emplace_back(reinterpret_cast<uintptr_t>(host), bytes);
    return true;
  }
  void unpin(void* host, size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    std::erase(ranges_, Range(reinterpret_cast<uintptr_t>(host), bytes));
  }
  [[nodiscard]] const std::vector<Range>& ranges() const { return ranges_; }
  [[nodiscard]] size_t calls() const { return calls_; }
  /// Registered ranges that hold a byte of the array.
  [[nodiscard]] int touched_by(const HostArray& array) const {
    const auto begin = reinterpret_cast<uintptr_t>(array.data());
    return static_cast<int>(std::count_if(ranges_.begin(), ranges_.end(), [&](const Range& range) {
      return range.first < begin + array.bytes() && begin < range.first + range.second;
    }));
  }

  [[nodiscard]] std::unique_ptr<CopyQueue> make_copy_queue() override { return nullptr; }
  [[nodiscard]] EventPtr record(ComputeStream) override { return nullptr; }
  void wait(ComputeStream, const EventPtr&) override {}
  [[nodiscard]] double seconds_between(const Event&, const Event&) const override { return 0; }
  void sum_of_squares(ComputeStream, const void*, DType, size_t, float*) override {}
  void update_resident(ComputeStream, std::span<const ResidentUpdate>) override {}
  [[nodiscard]] ComputeStream make_stream() override { return nullptr; }
  void copy_on_device(ComputeStream, void*, const void*, size_t) override {}
  void write_to_host(ComputeStream, float*, const float*, size_t) override {}
  void poison(ComputeStream, void*, size_t) override {}
  [[nodiscard]] std::shared_ptr<void> allocate(size_t) override { return nullptr; }

 private:
  std::mutex mutex_;
  std::vector<Range> ranges_;
  size_t calls_ = 0;
};

}  // namespace outboard

#endif  // OUTBOARD_TESTS_OFFLOAD_PINNING_DEVICE_H_
