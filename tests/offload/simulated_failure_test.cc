// What the fake device is for: failures surface where CUDA's would, and a hand-off without an event
// is seen.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "offload/devices/simulated_stream.h"
#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

#if defined(__SANITIZE_THREAD__)
constexpr bool kHasThreadSanitizer = true;  // it reports the very races that a test here makes
#else
constexpr bool kHasThreadSanitizer = false;
#endif

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

TEST(SimulatedDevice, FailureOfSubmittedWorkSurfacesAtTheEvent) {
  const auto device = make_simulated_device({});
  const ComputeStream stream = device->make_stream();
  const EventPtr before = device->record(stream);
  device->submit(stream, [] { throw std::runtime_error("boom 17"); });
  bool ran = false;
  device->submit(stream, [&] { ran = true; });
  const EventPtr after = device->record(stream);
  EXPECT_THAT(failure_of([&] { after->synchronize(); }), HasSubstr("boom 17"));
  EXPECT_FALSE(ran) << "work after a failure must not run";
  EXPECT_TRUE(after->is_done());
  before->synchronize();
}

TEST(SimulatedDevice, FailureCarriesOverToWhoWaits) {
  const auto device = make_simulated_device({});
  const ComputeStream stream = device->make_stream();
  const auto queue = device->make_copy_queue();
  std::vector<int> source(10, 1), target(10, 0);
  device->submit(stream, [] { throw std::runtime_error("boom 18"); });
  queue->wait(device->record(stream));
  queue->copy_to_host(target.data(), source.data(), 40);
  const EventPtr event = queue->record();
  EXPECT_THAT(failure_of([&] { event->synchronize(); }), HasSubstr("boom 18"));
  EXPECT_THAT(failure_of([&] { device->wait(nullptr, event); }), HasSubstr("boom 18"));
  EXPECT_THAT(target, Each(0));
}

TEST(SimulatedDevice, InvalidRangesSurfaceAtTheEvent) {
  const auto device = make_simulated_device({});
  std::vector<char> memory(100);
  const auto failure = [&](void* target, const void* source, size_t bytes) {
    const auto queue = device->make_copy_queue();
    queue->copy_to_host(target, source, bytes);
    const EventPtr event = queue->record();
    return failure_of([&] { event->synchronize(); });
  };
  EXPECT_THAT(failure(nullptr, memory.data(), 4), HasSubstr("null target"));
  EXPECT_THAT(failure(memory.data(), nullptr, 4), HasSubstr("null source"));
  EXPECT_THAT(failure(memory.data(), memory.data() + 9, 10), HasSubstr("overlap"));
}

TEST(SimulatedDevice, CopyMayNotLeaveItsRegisteredRange) {
  const auto device = make_simulated_device({});
  std::vector<char> host(200), weight(200);
  ASSERT_TRUE(device->pin(host.data(), 100));
  EXPECT_FALSE(device->pin(host.data() + 99, 1)) << "registered already";
  ASSERT_TRUE(device->pin(host.data() + 100, 100));
  const auto queue = device->make_copy_queue();
  queue->copy_to_host(host.data() + 40, weight.data(), 60);
  queue->record()->synchronize();
  queue->copy_to_host(host.data() + 40, weight.data(), 61);
  const EventPtr event = queue->record();
  EXPECT_THAT(failure_of([&] { event->synchronize(); }), HasSubstr("leaves the registered range"));
  device->unpin(host.data(), 100);
  EXPECT_TRUE(device->pin(host.data(), 100));
}

TEST(SimulatedDevice, UnknownStreamsAndEventsAreRefused) {
  const auto device = make_simulated_device({});
  const auto other = make_simulated_device({});
  const ComputeStream foreign = other->make_stream();
  EXPECT_THAT(failure_of([&] { (void)device->record(foreign); }), HasSubstr("make_stream()"));
}

TEST(SimulatedDevice, PoisonShowsAReaderThatDidNotWait) {
  if (kHasThreadSanitizer) GTEST_SKIP() << "races on purpose";
  SimulatedDeviceOptions options{.max_delay_microseconds = 300000, .poison_targets = true};
  while (simulated_delay(options, 0, 0) < 200000) ++options.seed;
  const auto device = make_simulated_device(options);
  const auto queue = device->make_copy_queue();
  const float source = 2;
  float target = 1;
  queue->copy_to_device(&target, &source, sizeof(float));
  const EventPtr event = queue->record();
  bool saw_nan = false;
  while (!event->is_done() && !saw_nan) {
    const float seen = *const_cast<volatile float*>(&target);
    saw_nan = seen != seen;
  }
  EXPECT_TRUE(saw_nan);
  event->synchronize();
  EXPECT_EQ(target, 2);
}

/// A small pipeline like the engine's: the gradient goes down, the host adds it, the weight comes
/// back, and the next "backward" reads it.
int run_pipeline(const SimulatedDeviceOptions& options, bool waits_for_weight) {
  constexpr int kSteps = 4;
  const auto device = make_simulated_device(options);
  const ComputeStream stream = device->make_stream();
  const auto down = device->make_copy_queue();
  const auto up = device->make_copy_queue();
  std::vector<float> weight(64, 1), gradient(64, 0), on_host(64, 0), master(64, 1);
  for (int step = 0; step < kSteps; ++step) {
    device->submit(stream, [&] { gradient = weight; });
    down->wait(device->record(stream));
    down->copy_to_host(on_host.data(), gradient.data(), 256);
    const EventPtr arrived = down->record();
    arrived->synchronize();
    for (size_t i = 0; i < 64; ++i) master[i] += on_host[i];
    up->copy_to_device(weight.data(), master.data(), 256);
    const EventPtr returned = up->record();
    if (waits_for_weight) device->wait(stream, returned);
    device->record(stream)->synchronize();
    if (waits_for_weight) returned->synchronize();  // the next step writes master
  }
  up->record()->synchronize();
  int wrong = 0;
  for (const float value : weight) wrong += value != 16.0f;  // doubled at each of four steps
  return wrong;
}

TEST(SimulatedDevice, OrderedPipelineIsRightForEverySeed) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    ASSERT_EQ(run_pipeline({seed, 50, true}, true), 0) << "seed " << seed;
  }
}

TEST(SimulatedDevice, ForgottenWaitIsSeen) {
  if (kHasThreadSanitizer) GTEST_SKIP() << "races on purpose";
  // The first return of the weight (queue 2) takes 80 ms longer than the next backward (stream 0).
  SimulatedDeviceOptions options{.max_delay_microseconds = 100000, .poison_targets = true};
  while (simulated_delay(options, 2, 0) < simulated_delay(options, 0, 1) + 80000) ++options.seed;
  EXPECT_GT(run_pipeline(options, false), 0);
}

}  // namespace
}  // namespace outboard
