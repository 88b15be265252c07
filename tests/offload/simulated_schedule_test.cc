// Random programs on the fake device: copies between buffers on several queues and streams, each
// waiting for exactly the events that its buffers need, must leave what the same copies leave when
// they run one after the other.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "outboard/device.h"

namespace outboard {
namespace {

constexpr size_t kBuffers = 6;
constexpr size_t kValues = 32;
constexpr size_t kBytes = kValues * sizeof(uint32_t);
constexpr int kOperations = 40;
constexpr uint64_t kSeeds = 150;

using Buffer = std::array<uint32_t, kValues>;
using Buffers = std::array<Buffer, kBuffers>;

// The events that a later user of the buffer must wait for.
struct Uses {
  EventPtr written;
  std::vector<EventPtr> read;
};

struct Operation {
  size_t source;
  size_t target;
  size_t lane;      // which queue, or beyond them which stream
  bool is_awaited;  // the host waits for it before it goes on
};

void add(const Buffer& source, Buffer* target) {
  for (size_t i = 0; i < kValues; ++i) (*target)[i] = 3 * (*target)[i] + source[i];
}

class Program {
 public:
  explicit Program(uint64_t seed)
      : device_(make_simulated_device({seed, static_cast<int>(seed % 40), seed % 2 == 0})) {
    for (auto& queue : queues_) queue = device_->make_copy_queue();
    for (auto& stream : streams_) stream = device_->make_stream();
    for (size_t i = 0; i < kBuffers; ++i) buffers_[i].fill(static_cast<uint32_t>(i + 1));
    expected_ = buffers_;
  }
  ~Program() {
    for (const auto& queue : queues_) queue->record()->synchronize();
    for (const ComputeStream stream : streams_) device_->record(stream)->synchronize();
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void run(const Operation& operation) {
    const EventPtr done = operation.lane < queues_.size()
                              ? copy(*queues_[operation.lane], operation)
                              : compute(streams_[operation.lane - queues_.size()], operation);
    uses_[operation.source].read.push_back(done);
    uses_[operation.target] = {done, {}};
    if (operation.is_awaited) done->synchronize();
  }

  [[nodiscard]] bool is_as_expected() {
    for (const Uses& uses : uses_) {
      if (uses.written) uses.written->synchronize();
      for (const EventPtr& event : uses.read) event->synchronize();
    }
    return buffers_ == expected_;
  }

 private:
  template <class Wait>
  void wait_for_buffers(const Operation& operation, const Wait& wait) const {
    wait(uses_[operation.source].written);
    wait(uses_[operation.target].written);
    for (const EventPtr& event : uses_[operation.target].read) wait(event);
  }

  EventPtr copy(CopyQueue& queue, const Operation& operation) {
    wait_for_buffers(operation, [&](const EventPtr& event) { queue.wait(event); });
    expected_[operation.target] = expected_[operation.source];
    queue.copy_to_host(buffers_[operation.target].data(), buffers_[operation.source].data(),
                       kBytes);
    return queue.record();
  }

  EventPtr compute(ComputeStream stream, const Operation& operation) {
    wait_for_buffers(operation, [&](const EventPtr& event) { device_->wait(stream, event); });
    add(expected_[operation.source], &expected_[operation.target]);
    device_->submit(stream, [&source = buffers_[operation.source],
                             &target = buffers_[operation.target]] { add(source, &target); });
    return device_->record(stream);
  }

  std::shared_ptr<SimulatedDevice> device_;
  std::array<std::unique_ptr<CopyQueue>, 3> queues_;
  std::array<ComputeStream, 2> streams_ = {};
  Buffers buffers_ = {};
  Buffers expected_ = {};
  std::array<Uses, kBuffers> uses_;
};

TEST(SimulatedDevice, RandomSchedulesEqualSequentialOnes) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    std::mt19937_64 random(seed);
    Program program(seed);
    for (int i = 0; i < kOperations; ++i) {
      const size_t source = random() % kBuffers;
      const size_t target = (source + 1 + random() % (kBuffers - 1)) % kBuffers;
      program.run({source, target, random() % 5, random() % 8 == 0});
    }
    ASSERT_TRUE(program.is_as_expected()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace outboard
