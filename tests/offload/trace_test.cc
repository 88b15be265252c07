// The timeline's recorder on the fake device: order, clocks, threads, and what it must not keep.
#include "offload/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <latch>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Clock = Trace::Clock;

std::vector<std::string> names(const std::vector<TraceSpan>& spans) {
  std::vector<std::string> found;
  for (const TraceSpan& span : spans) found.push_back(span.name);
  return found;
}

class TraceTest : public ::testing::Test {
 protected:
  // Work on `stream` between two events, as the engine records it.
  void record_work(ComputeStream stream, std::string name, std::function<void()> work) {
    EventPtr begin = device_->record(stream);
    device_->submit(stream, std::move(work));
    trace_.device("compute", std::move(name), begin, device_->record(stream), 8);
  }

  std::shared_ptr<SimulatedDevice> device_ =
      make_simulated_device({.seed = 7, .max_delay_microseconds = 100});
  ComputeStream stream_ = device_->make_stream();
  Trace trace_{device_};
};

TEST_F(TraceTest, IsOffAtFirstAndRecordsNothing) {
  EXPECT_FALSE(trace_.is_on());
  trace_.host("waits", "before", Clock::now(), Clock::now());
  record_work(stream_, "before", [] {});
  { const TraceHostSpan scope(&trace_, "waits", "before"); }
  EXPECT_THAT(trace_.take(), IsEmpty());
}

TEST_F(TraceTest, StopKeepsWhatWasRecordedAndIgnoresWhatFollows) {
  trace_.start(stream_);
  EXPECT_TRUE(trace_.is_on());
  record_work(stream_, "kept", [] {});
  trace_.stop();
  EXPECT_FALSE(trace_.is_on());
  record_work(stream_, "late", [] {});
  trace_.host("waits", "late", Clock::now(), Clock::now());
  EXPECT_THAT(names(trace_.take()), ElementsAre("kept"));
  EXPECT_THAT(trace_.take(), IsEmpty()) << "taken is taken";
}

TEST_F(TraceTest, StartForgetsTheTraceBefore) {
  trace_.start(stream_);
  record_work(stream_, "old", [] {});
  trace_.host("waits", "old", Clock::now(), Clock::now());
  const Clock::time_point between = Clock::now();
  trace_.start(stream_);
  trace_.host("waits", "began before", between, Clock::now());
  record_work(stream_, "new", [] {});
  EXPECT_THAT(names(trace_.take()), ElementsAre("new"));
}

TEST_F(TraceTest, DeviceWorkThatBeganBeforeStartIsLeftOut) {
  const EventPtr early = device_->record(stream_);
  device_->record(stream_)->synchronize();
  trace_.start(stream_);
  trace_.device("compute", "straddles", early, device_->record(stream_));
  record_work(stream_, "inside", [] {});
  EXPECT_THAT(names(trace_.take()), ElementsAre("inside"));
}

// The host releases the device's work between two of its own spans: on one clock, the device's work
// ends after the first has begun and the last begins after the device's has ended.
TEST_F(TraceTest, HostAndDeviceTimesAreOnOneClock) {
  trace_.start(stream_);
  for (int round = 0; round < 20; ++round) {
    std::latch is_released(1);
    record_work(stream_, "device", [&] { is_released.wait(); });
    const Clock::time_point begin = Clock::now();
    is_released.count_down();
    device_->record(stream_)->synchronize();
    const Clock::time_point end = Clock::now();
    trace_.host("waits", "release", begin, begin);
    trace_.host("waits", "after", end, end);
  }
  const std::vector<TraceSpan> spans = trace_.take();
  ASSERT_THAT(spans, SizeIs(60));
  // The anchor is known to half the round trip to an idle stream; a thread may be descheduled.
  constexpr double kTolerance = 2e-3;
  double released = 0, done = 0;
  for (const TraceSpan& span : spans) {
    if (span.name == "release") released = span.begin;
    if (span.name == "device") done = span.end;
    if (span.name == "after") {
      EXPECT_GE(done, released - kTolerance);
      EXPECT_LE(done, span.begin + kTolerance);
      EXPECT_GE(done, 0);
    }
  }
}

TEST_F(TraceTest, DeviceSpansLastAsLongAsTheirWork) {
  constexpr auto kWork = std::chrono::milliseconds(3);
  trace_.start(stream_);
  record_work(stream_, "work", [=] { std::this_thread::sleep_for(kWork); });
  record_work(stream_, "more work", [] {});
  const std::vector<TraceSpan> spans = trace_.take();
  ASSERT_THAT(names(spans), ElementsAre("work", "more work"));
  EXPECT_GE(spans[0].end - spans[0].begin, 0.003);
  EXPECT_LE(spans[0].begin, spans[0].end);
  EXPECT_NEAR(spans[1].begin, spans[0].end, 2e-3);
  EXPECT_EQ(spans[0].lane, "compute");
  EXPECT_EQ(spans[0].bytes, 8u);
}

TEST_F(TraceTest, SpansAreOrderedByBeginNotByRecording) {
  trace_.start(stream_);
  const Clock::time_point now = Clock::now();
  const auto after = [&](int ms) { return now + std::chrono::milliseconds(ms); };
  trace_.host("host update", "third", after(20), after(21), 3);
  trace_.host("host update", "first", after(1), after(30), 1);
  trace_.host("waits", "second", after(10), after(12), 2);
  const std::vector<TraceSpan> spans = trace_.take();
  ASSERT_THAT(names(spans), ElementsAre("first", "second", "third"));
  EXPECT_NEAR(spans[0].end - spans[0].begin, 0.029, 1e-9);
  EXPECT_NEAR(spans[2].begin - spans[1].begin, 0.010, 1e-9);
}

// Between recording and take() nobody else holds the events, and the work may be far from done.
TEST_F(TraceTest, TakeHoldsTheEventsAndWaitsForThem) {
  trace_.start(stream_);
  std::latch is_released(1);
  std::weak_ptr<const Event> watched;
  {
    EventPtr begin = device_->record(stream_);
    device_->submit(stream_, [&] { is_released.wait(); });
    EventPtr end = device_->record(stream_);
    watched = begin;
    trace_.device("compute", "work", std::move(begin), std::move(end));
  }
  EXPECT_FALSE(watched.expired());
  std::vector<TraceSpan> spans;
  std::thread taker([&] { spans = trace_.take(); });
  trace_.host("waits", "recorded meanwhile", Clock::now(), Clock::now());
  is_released.count_down();
  taker.join();
  EXPECT_THAT(names(spans), ::testing::Contains("work"));
  EXPECT_TRUE(watched.expired()) << "the event goes back to its pool";
}

TEST_F(TraceTest, ThreadsRecordTogetherWhileItStartsAndStops) {
  constexpr int kThreads = 4, kRounds = 200;
  trace_.start(stream_);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, stream = device_->make_stream()] {
      for (int round = 0; round < kRounds; ++round) {
        record_work(stream, "device", [] {});
        const TraceHostSpan scope(&trace_, "host update", "host", 16);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<TraceSpan> spans = trace_.take();
  EXPECT_THAT(spans, SizeIs(2 * kThreads * kRounds));
  EXPECT_TRUE(std::is_sorted(spans.begin(), spans.end(),
                             [](auto& one, auto& other) { return one.begin < other.begin; }));
  threads.clear();
  threads.emplace_back([&] {
    for (int round = 0; round < kRounds; ++round) record_work(stream_, "racing", [] {});
  });
  for (int round = 0; round < 20; ++round) {
    trace_.start(stream_);
    trace_.stop();
    (void)trace_.take();
  }
  threads.front().join();
}

TEST_F(TraceTest, AFailureOfTheDeviceIsThrownAndTheTraceGoesOn) {
  trace_.start(stream_);
  record_work(stream_, "fails", [] { throw std::runtime_error("broken"); });
  EXPECT_THROW((void)trace_.take(), Error);
  trace_.host("waits", "later", Clock::now(), Clock::now());
  EXPECT_THAT(names(trace_.take()), ElementsAre("later"));
  EXPECT_THROW(trace_.start(stream_), Error);
  EXPECT_FALSE(trace_.is_on());
}

TEST(TraceWithoutDevice, KeepsHostSpansOnly) {
  Trace trace(nullptr);
  trace.start(nullptr);
  { const TraceHostSpan scope(&trace, "host update", "chunk 0", 64); }
  trace.device("compute", "ignored", nullptr, nullptr);
  const std::vector<TraceSpan> spans = trace.take();
  ASSERT_THAT(names(spans), ElementsAre("chunk 0"));
  EXPECT_GE(spans[0].begin, 0);
  EXPECT_GE(spans[0].end, spans[0].begin);
  EXPECT_EQ(spans[0].bytes, 64u);
}

TEST(TraceHostSpan, IsRecordedOnlyIfTheTraceIsOnAllTheTime) {
  Trace trace(nullptr);
  {
    const TraceHostSpan none(nullptr, "waits", "no trace");
    const TraceHostSpan early(&trace, "waits", "began off");
    trace.start(nullptr);
  }
  {
    const TraceHostSpan cut(&trace, "waits", "ended off");
    trace.stop();
  }
  EXPECT_THAT(trace.take(), IsEmpty());
}

}  // namespace
}  // namespace outboard
