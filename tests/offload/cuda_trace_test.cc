// The timeline's recorder on CUDA: device times on the host's clock. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "offload/memory/host_memory.h"
#include "offload/trace.h"
#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard {
namespace {

constexpr size_t kBytes = size_t{64} << 20;  // more than a millisecond of copying
constexpr double kTolerance = 5e-4;          // many times what the clocks are tied to

class CudaTraceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      device_ = make_cuda_device(0);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    memory_ = std::make_unique<HostMemory>(device_);
    host_ = memory_->reserve(kBytes, MemoryKind::kWeights, true);
    memory_->commit();
    on_device_ = device_->allocate(kBytes);
    queue_ = device_->make_copy_queue();
    trace_ = std::make_unique<Trace>(device_);
  }

  void copy() {
    EventPtr begin = queue_->record();
    queue_->copy_to_device(on_device_.get(), host_.data(), kBytes);
    trace_->device("weights up", "copy", std::move(begin), queue_->record(), kBytes);
  }

  std::shared_ptr<Device> device_;
  std::unique_ptr<HostMemory> memory_;
  HostArray host_;
  std::shared_ptr<void> on_device_;
  std::unique_ptr<CopyQueue> queue_;
  std::unique_ptr<Trace> trace_;
};

// The copies run after the host asked for them and before it saw their end.
TEST_F(CudaTraceTest, DeviceSpansLieWithinTheHostsWaits) {
  trace_->start(nullptr);
  for (int round = 0; round < 20; ++round) {
    const TraceHostSpan scope(trace_.get(), "waits", "copy and wait");
    copy();
    queue_->record()->synchronize();
  }
  std::vector<TraceSpan> waits, copies;
  for (TraceSpan& span : trace_->take()) {
    (span.lane == "waits" ? waits : copies).push_back(std::move(span));
  }
  ASSERT_EQ(waits.size(), 20u);
  ASSERT_EQ(copies.size(), 20u);
  for (size_t i = 0; i < copies.size(); ++i) {
    EXPECT_GE(copies[i].begin, waits[i].begin - kTolerance) << i;
    EXPECT_LE(copies[i].end, waits[i].end + kTolerance) << i;
    EXPECT_GT(copies[i].end - copies[i].begin, 2e-4) << i << ": more than 300 GB/s";
  }
}

TEST_F(CudaTraceTest, CopiesOfOneQueueFollowEachOther) {
  trace_->start(nullptr);
  for (int i = 0; i < 20; ++i) copy();
  trace_->stop();
  const std::vector<TraceSpan> spans = trace_->take();
  ASSERT_EQ(spans.size(), 20u);
  for (size_t i = 1; i < spans.size(); ++i) {
    EXPECT_GE(spans[i].begin, spans[i - 1].end - 5e-6) << i;  // a few ticks of single precision
  }
}

TEST_F(CudaTraceTest, WorkBeforeTheTraceIsLeftOut) {
  EventPtr early = queue_->record();
  early->synchronize();
  trace_->start(nullptr);
  trace_->device("weights up", "straddles", std::move(early), queue_->record());
  copy();
  EXPECT_EQ(trace_->take().size(), 1u);
}

}  // namespace
}  // namespace outboard
