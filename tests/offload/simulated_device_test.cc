// The fake device itself: order, waits, times, kernels.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <latch>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "cpu_kernels/gradient_math.h"
#include "cpu_kernels/step.h"
#include "offload/devices/simulated_stream.h"
#include "outboard/device.h"

namespace outboard {
namespace {

using ::testing::Each;

std::vector<int> counted(size_t size, int first = 0) {
  std::vector<int> values(size);
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(SimulatedDevice, CopiesBothWaysInOrder) {
  const auto device = make_simulated_device({.seed = 1, .max_delay_microseconds = 100});
  const auto queue = device->make_copy_queue();
  const std::vector<int> source = counted(1000);
  std::vector<int> on_device(1000), back(1000);
  queue->copy_to_device(on_device.data(), source.data(), 4000);
  queue->copy_to_host(back.data(), on_device.data(), 4000);
  const EventPtr event = queue->record();
  event->synchronize();
  EXPECT_TRUE(event->is_done());
  EXPECT_EQ(back, source);
}

TEST(SimulatedDevice, CopyReadsItsSourceOnlyInItsTurn) {
  const auto device = make_simulated_device({});
  const ComputeStream stream = device->make_stream();
  const auto queue = device->make_copy_queue();
  std::vector<int> weight(10, 0), host(10, 0);
  std::latch gate(1);
  device->submit(stream, [&] {
    gate.wait();
    weight.assign(10, 5);
  });
  queue->wait(device->record(stream));
  queue->copy_to_host(host.data(), weight.data(), 40);
  const EventPtr copied = queue->record();
  EXPECT_FALSE(copied->is_done());
  gate.count_down();
  copied->synchronize();
  EXPECT_THAT(host, Each(5));
}

TEST(SimulatedDevice, StreamWaitsForACopy) {
  const auto device = make_simulated_device({.seed = 3, .max_delay_microseconds = 500});
  const ComputeStream stream = device->make_stream();
  const auto queue = device->make_copy_queue();
  const std::vector<int> host(10, 8);
  std::vector<int> weight(10, 0);
  int seen = 0;
  queue->copy_to_device(weight.data(), host.data(), 40);
  device->wait(stream, queue->record());
  device->submit(stream, [&] { seen = weight[9]; });
  device->record(stream)->synchronize();
  EXPECT_EQ(seen, 8);
}

TEST(SimulatedDevice, NullStreamIsTheCallingThread) {
  const auto device = make_simulated_device({.seed = 3, .max_delay_microseconds = 500});
  const auto queue = device->make_copy_queue();
  const std::vector<int> host(10, 8);
  std::vector<int> weight(10, 0);
  std::thread::id ran_on;
  device->submit(nullptr, [&] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
  EXPECT_TRUE(device->record(nullptr)->is_done());
  queue->copy_to_device(weight.data(), host.data(), 40);
  device->wait(nullptr, queue->record());
  EXPECT_THAT(weight, Each(8));
  device->wait(nullptr, nullptr);
}

TEST(SimulatedDevice, DelaysAreAFunctionOfSeedQueueAndIndex) {
  const SimulatedDeviceOptions options{.seed = 42, .max_delay_microseconds = 1000};
  std::set<uint64_t> drawn;
  for (uint64_t number = 0; number < 4; ++number) {
    for (uint64_t index = 0; index < 100; ++index) {
      const uint64_t delay = simulated_delay(options, number, index);
      EXPECT_EQ(delay, simulated_delay(options, number, index));
      EXPECT_LE(delay, 1000u);
      drawn.insert(delay);
    }
  }
  EXPECT_GT(drawn.size(), 250u) << "400 draws from 1001 values give about 330 different ones";
  EXPECT_EQ(simulated_delay({.seed = 42}, 1, 1), 0u);
}

TEST(SimulatedDevice, EventsOutliveQueueAndDevice) {
  EventPtr event;
  std::vector<int> source(10, 4), target(10, 0);
  {
    const auto device = make_simulated_device({.seed = 5, .max_delay_microseconds = 200});
    const auto queue = device->make_copy_queue();
    queue->copy_to_host(target.data(), source.data(), 40);
    event = queue->record();
  }
  event->synchronize();
  EXPECT_THAT(target, Each(4));
}

TEST(SimulatedDevice, QueueOutlivesItsDevice) {
  auto device = make_simulated_device({.seed = 5, .max_delay_microseconds = 200});
  const auto queue = device->make_copy_queue();
  device.reset();
  std::vector<int> source(10, 4), target(10, 0);
  queue->copy_to_host(target.data(), source.data(), 40);
  queue->record()->synchronize();
  EXPECT_THAT(target, Each(4));
}

TEST(SimulatedDevice, SecondsBetweenEventsCountTheWork) {
  const auto device = make_simulated_device({});
  const ComputeStream stream = device->make_stream();
  const EventPtr first = device->record(stream);
  device->submit(stream, [] {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(3);
    while (std::chrono::steady_clock::now() < until) {
    }
  });
  const EventPtr second = device->record(stream);
  second->synchronize();
  EXPECT_GE(device->seconds_between(*first, *second), 0.003);
  EXPECT_LE(device->seconds_between(*second, *first), -0.003);
}

TEST(SimulatedDevice, AllocatesZeroes) {
  const auto device = make_simulated_device({});
  const auto memory = device->allocate(1000);
  const auto* const bytes = static_cast<const char*>(memory.get());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 256, 0u);
  EXPECT_THAT(std::vector<char>(bytes, bytes + 1000), Each(0));
  EXPECT_EQ(device->allocate(0), nullptr);
}

TEST(SimulatedDevice, SumOfSquaresIsTheHostsInItsTurn) {
  const auto device = make_simulated_device({.seed = 2, .max_delay_microseconds = 200});
  const ComputeStream stream = device->make_stream();
  constexpr size_t kElements = 2 * kNormSegmentElements + 77;
  std::vector<float> gradient(kElements), expected(3), sums(3, -1);
  for (size_t i = 0; i < kElements; ++i) gradient[i] = 0.001f * static_cast<float>(i % 1000);
  cpu::sum_of_squares(gradient.data(), DType::kF32, kElements, expected.data());
  std::vector<float> produced(kElements);
  device->submit(stream, [&] { produced = gradient; });
  device->sum_of_squares(stream, produced.data(), DType::kF32, kElements, sums.data());
  device->record(stream)->synchronize();
  EXPECT_EQ(sums, expected);
}

TEST(SimulatedDevice, UpdateResidentIsTheHostsUpdate) {
  const auto device = make_simulated_device({.seed = 2, .max_delay_microseconds = 200});
  const RuleInfo& rule = rule_named("SGD");
  std::vector<double> hyper;
  for (const HyperParameter& parameter : rule.hyper_parameters) {
    hyper.push_back(parameter.key == "lr" ? 0.5 : parameter.default_value);
  }
  const size_t elements = 300;
  std::vector<float> gradient(elements), expected(elements), weight(elements);
  for (size_t i = 0; i < elements; ++i) gradient[i] = static_cast<float>(i);
  ResidentUpdate update{.rule = rule.id, .scalars = rule.scalars(hyper, 1, 1.0)};
  update.step = 1;
  update.elements = elements;
  update.gradient = gradient.data();
  update.weight = expected.data();
  device->update_resident(nullptr, std::array{update});
  EXPECT_EQ(expected[10], -5.0f);
  const ComputeStream stream = device->make_stream();
  update.weight = weight.data();
  device->update_resident(stream, std::array{update});
  device->record(stream)->synchronize();
  EXPECT_EQ(weight, expected);

  const std::vector<float> old(elements, 0.0f);
  std::vector<float> replaced(elements, 7.0f);
  update.weight = replaced.data();
  update.old_weight = old.data();
  device->update_resident(stream, std::array{update});
  device->record(stream)->synchronize();
  EXPECT_EQ(replaced, expected);
  EXPECT_THAT(old, Each(0.0f));
}

TEST(SimulatedDevice, ManyThreadsMayUseIt) {
  const auto device = make_simulated_device({.seed = 9, .max_delay_microseconds = 20});
  const ComputeStream stream = device->make_stream();
  std::atomic<int> ran = 0;
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      const auto queue = device->make_copy_queue();
      std::vector<int> source(100, thread), target(100, -1);
      for (int round = 0; round < 20; ++round) {
        device->submit(stream, [&] { ++ran; });
        queue->wait(device->record(stream));
        queue->copy_to_host(target.data(), source.data(), 400);
        const EventPtr event = queue->record();
        device->wait(stream, event);
        event->synchronize();
        EXPECT_THAT(target, Each(thread));
      }
    });
  }
  threads.clear();
  device->record(stream)->synchronize();
  EXPECT_EQ(ran, 80);
}

}  // namespace
}  // namespace outboard
