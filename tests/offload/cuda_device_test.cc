// The device on CUDA, through its interface alone: order of copies across streams, events, pinning,
// errors, and resident updates equal to the host's, bit by bit. Skipped where there is no GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpu_kernels/gradient_math.h"
#include "offload/memory/host_memory.h"
#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

std::string failure_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kDevice);
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      device_ = make_cuda_device(0);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    queue_ = device_->make_copy_queue();
  }
  template <class T>
  [[nodiscard]] std::shared_ptr<T> on_device(const std::vector<T>& values) const {
    const size_t bytes = values.size() * sizeof(T);
    auto memory = std::static_pointer_cast<T>(device_->allocate(bytes));
    queue_->copy_to_device(memory.get(), values.data(), bytes);
    queue_->record()->synchronize();
    return memory;
  }
  template <class T>
  [[nodiscard]] std::vector<T> on_host(const T* memory, size_t count) const {
    std::vector<T> values(count);
    queue_->wait(device_->record(nullptr));
    queue_->copy_to_host(values.data(), memory, count * sizeof(T));
    queue_->record()->synchronize();
    return values;
  }

  std::shared_ptr<Device> device_;
  std::unique_ptr<CopyQueue> queue_;
};

std::vector<float> gradient_like(size_t size) {
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) {
    values[i] = static_cast<float>(static_cast<int>(i * 2654435761u % 2001u) - 1000) * 1e-3f;
  }
  return values;
}

TEST_F(CudaDeviceTest, AllocatesZeroesWhereOtherBytesWere) {
  (void)on_device(std::vector<char>(50000003, 7));  // freed at once
  const auto memory = std::static_pointer_cast<char>(device_->allocate(50000003));
  const std::vector<char> bytes = on_host(memory.get(), 50000003);
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 0), 50000003);
  EXPECT_EQ(device_->allocate(0), nullptr);
}

TEST_F(CudaDeviceTest, MissingDeviceIsNamed) {
  EXPECT_THAT(failure_of([] { (void)make_cuda_device(4096); }), HasSubstr("device 4096"));
  EXPECT_THAT(failure_of([] { (void)make_cuda_device(-1); }), HasSubstr("device -1"));
}

TEST_F(CudaDeviceTest, AllocationTooLargeNamesCallAndBytes) {
  const std::string text = failure_of([&] { (void)device_->allocate(size_t{1} << 46); });
  EXPECT_THAT(text, HasSubstr("cudaMalloc of 70368744177664 bytes"));
  const auto memory = device_->allocate(100);  // the error does not stick
  EXPECT_NE(memory, nullptr);
}

TEST_F(CudaDeviceTest, CopiesBothWaysInOrder) {
  std::vector<int> values(1 << 20);
  std::iota(values.begin(), values.end(), 7);
  const auto memory = on_device(values);
  EXPECT_EQ(on_host(memory.get(), values.size()), values);
}

TEST_F(CudaDeviceTest, WritesFloatsToPinnedAndToOtherHostMemory) {
  const std::vector<float> values = gradient_like(100003);
  const auto memory = on_device(values);
  HostMemory host(device_);
  const HostArray pinned = host.reserve(values.size() * 4, MemoryKind::kWeights, true);
  host.commit();
  std::vector<float> pageable(values.size());
  for (float* const target : {pinned.as<float>(), pageable.data()}) {
    device_->write_to_host(nullptr, target + 1, memory.get() + 3, values.size() - 3);
    device_->record(nullptr)->synchronize();
    EXPECT_TRUE(std::equal(values.begin() + 3, values.end(), target + 1));
    EXPECT_EQ(target[0], 0.0f);
  }
  device_->write_to_host(nullptr, nullptr, nullptr, 0);
}

// 8 GiB are on their way down: the copy engine is busy for at least a tenth of a second, and what
// is written meanwhile does not wait for it.
TEST_F(CudaDeviceTest, WhatIsWrittenOvertakesTheCopiesOfAQueue) {
  constexpr size_t kBytes = size_t{256} << 20;
  HostMemory host(device_);
  const HostArray target = host.reserve(kBytes, MemoryKind::kWeights, true);
  const HostArray written = host.reserve(4096, MemoryKind::kWeights, true);
  host.commit();
  ASSERT_GT(host.pinned_bytes(), 0u) << host.warning();
  const auto source = device_->allocate(kBytes);
  const auto values = on_device(std::vector<float>{1, 2, 3});
  const ComputeStream stream = device_->make_stream();
  for (int i = 0; i < 32; ++i) queue_->copy_to_host(target.data(), source.get(), kBytes);
  const EventPtr copied = queue_->record();
  device_->write_to_host(stream, written.as<float>(), static_cast<const float*>(values.get()), 3);
  device_->record(stream)->synchronize();
  EXPECT_FALSE(copied->is_done());
  EXPECT_EQ(written.as<float>()[2], 3.0f);
  copied->synchronize();
}

// A copy of 512 MiB on one stream, then a copy that needs its last bytes on another: without the
// event the second would be long done.
TEST_F(CudaDeviceTest, QueueWaitsForAnEventOfAnother) {
  constexpr size_t kCount = size_t{128} << 20;
  HostMemory memory(device_);
  const HostArray source = memory.reserve(kCount * 4, MemoryKind::kWeights, true);
  const HostArray target = memory.reserve(4096, MemoryKind::kWeights, true);
  memory.commit();
  ASSERT_GT(memory.pinned_bytes(), 0u) << memory.warning();
  std::fill_n(source.as<int>(), kCount, 5);
  const auto weight = std::static_pointer_cast<int>(device_->allocate(kCount * 4));
  const auto other = device_->make_copy_queue();
  queue_->copy_to_device(weight.get(), source.data(), kCount * 4);
  const EventPtr sent = queue_->record();
  other->wait(sent);
  other->copy_to_host(target.data(), weight.get() + kCount - 1024, 4096);
  const EventPtr back = other->record();
  back->synchronize();
  EXPECT_TRUE(sent->is_done());
  EXPECT_THAT(std::vector<int>(target.as<int>(), target.as<int>() + 1024), Each(5));
  EXPECT_GE(device_->seconds_between(*sent, *back), 0);
  EXPECT_LE(device_->seconds_between(*back, *sent), 0);
}

TEST_F(CudaDeviceTest, ComputeStreamWaitsForACopy) {
  constexpr size_t kCount = size_t{64} << 20;
  HostMemory memory(device_);
  const HostArray source = memory.reserve(kCount * 4, MemoryKind::kWeights, true);
  memory.commit();
  std::fill_n(source.as<float>(), kCount, 2.0f);
  const auto gradient = std::static_pointer_cast<float>(device_->allocate(kCount * 4));
  const size_t segments = norm_segments(kCount);
  const auto sums = std::static_pointer_cast<float>(device_->allocate(segments * 4));
  queue_->copy_to_device(gradient.get(), source.data(), kCount * 4);
  device_->wait(nullptr, queue_->record());
  device_->sum_of_squares(nullptr, gradient.get(), DType::kF32, kCount, sums.get());
  EXPECT_THAT(on_host(sums.get(), segments), Each(4.0f * kNormSegmentElements));
}

TEST_F(CudaDeviceTest, SumOfSquaresHasTheHostsBits) {
  const std::vector<float> gradient = gradient_like(3 * kNormSegmentElements + 77);
  std::vector<float> expected(4);
  cpu::sum_of_squares(gradient.data(), DType::kF32, gradient.size(), expected.data());
  const auto memory = on_device(gradient);
  const auto sums = std::static_pointer_cast<float>(device_->allocate(16));
  device_->sum_of_squares(nullptr, memory.get(), DType::kF32, gradient.size(), sums.get());
  EXPECT_EQ(on_host(sums.get(), 4), expected);
}

TEST_F(CudaDeviceTest, UpdatesOfSeveralGroupsHaveTheHostsBits) {
  const auto host = make_simulated_device({});
  const RuleInfo& rule = rule_named("SGD");
  std::vector<double> hyper;
  for (const HyperParameter& item : rule.hyper_parameters) hyper.push_back(item.default_value);
  constexpr size_t kParameters = 5;
  std::vector<std::vector<float>> gradients, expected;
  std::vector<std::shared_ptr<float>> device_gradients, device_weights;
  std::vector<ResidentUpdate> host_updates, device_updates;
  for (size_t i = 0; i < kParameters; ++i) {
    hyper[0] = i % 2 == 0 ? 0.5 : 0.25;  // two groups, interleaved
    gradients.push_back(gradient_like(i == 3 ? 0 : 200 + 300 * i));
    expected.push_back(gradient_like(gradients[i].size()));
    device_gradients.push_back(on_device(gradients[i]));
    device_weights.push_back(on_device(expected[i]));
  }
  for (size_t i = 0; i < kParameters; ++i) {
    hyper[0] = i % 2 == 0 ? 0.5 : 0.25;
    ResidentUpdate update{.rule = rule.id, .scalars = rule.scalars(hyper, 1, 1.0)};
    update.step = 1;
    update.elements = gradients[i].size();
    update.gradient = gradients[i].data();
    update.weight = expected[i].data();
    host_updates.push_back(update);
    update.gradient = device_gradients[i].get();
    update.weight = device_weights[i].get();
    device_updates.push_back(update);
  }
  host->update_resident(nullptr, host_updates);
  device_->update_resident(nullptr, device_updates);
  for (size_t i = 0; i < kParameters; ++i) {
    EXPECT_EQ(on_host(device_weights[i].get(), expected[i].size()), expected[i])
        << "parameter " << i;
  }
}

TEST_F(CudaDeviceTest, PinRefusesTwiceAndLeavesNoError) {
  HostMemory memory;
  const HostArray array = memory.reserve(1 << 20, MemoryKind::kWeights, true);
  memory.commit();
  EXPECT_TRUE(device_->pin(array.data(), array.bytes()));
  EXPECT_FALSE(device_->pin(array.data(), array.bytes()));
  EXPECT_FALSE(device_->pin(array.data(), 0));
  EXPECT_NE(device_->allocate(100), nullptr);
  device_->unpin(array.data(), array.bytes());
  EXPECT_TRUE(device_->pin(array.data(), array.bytes()));
  device_->unpin(array.data(), array.bytes());
}

TEST_F(CudaDeviceTest, EventsOutliveQueueAndDevice) {
  const std::vector<int> values(1000, 3);
  auto memory = on_device(values);
  EventPtr event = queue_->record();
  queue_.reset();
  device_.reset();
  event->synchronize();
  EXPECT_TRUE(event->is_done());
  event.reset();
  memory.reset();
}

TEST_F(CudaDeviceTest, EventsOfOtherDevicesAreRefused) {
  const EventPtr foreign = make_simulated_device({})->record(nullptr);
  EXPECT_THAT(failure_of([&] { queue_->wait(foreign); }), HasSubstr("another kind of device"));
  queue_->wait(nullptr);
}

TEST_F(CudaDeviceTest, ManyThreadsMayUseIt) {
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      const auto queue = device_->make_copy_queue();
      const std::vector<int> source(5000, thread);
      std::vector<int> target(5000, -1);
      const auto memory = std::static_pointer_cast<int>(device_->allocate(20000));
      for (int round = 0; round < 50; ++round) {
        queue->wait(device_->record(nullptr));
        queue->copy_to_device(memory.get(), source.data(), 20000);
        device_->wait(nullptr, queue->record());
        queue->copy_to_host(target.data(), memory.get(), 20000);
        queue->record()->synchronize();
        EXPECT_EQ(target, source);
      }
    });
  }
}

}  // namespace
}  // namespace outboard
