// Orders of the whole engine that chance alone would rarely upset, each forced with a gate.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::Gate;
using testing::happens_soon;
using testing::WatchedDevice;

constexpr size_t kElements = 3 * kNormSegmentElements + 5;

std::vector<float> all(float value) { return std::vector<float>(kElements, value); }

// One fp32 weight on the device; plain SGD with learning rate 1, or no rule at all.
class EngineOrder : public ::testing::Test {
 protected:
  ~EngineOrder() override {
    gate_.open();
    device_->record(stream_)->synchronize();
    device_->record(held_)->synchronize();
  }

  Engine& make_engine(bool offloads, bool has_rule, std::shared_ptr<Device> device = nullptr) {
    engine_ =
        std::make_unique<Engine>(EngineOptions{.offload_gradients = offloads,
                                               .skip_nonfinite = false,
                                               .threads = 2,
                                               .chunk_elements = kNormSegmentElements,
                                               .slot_bytes = kNormSegmentElements * sizeof(float),
                                               .slots = 1},
                                 device == nullptr ? device_ : std::move(device));
    ParameterSpec spec{
        .name = "weight", .weight = weight_.data(), .elements = kElements, .rule = {}, .hyper = {}};
    const RuleInfo& sgd = rule_named("SGD");
    for (const HyperParameter& hyper : sgd.hyper_parameters) {
      spec.hyper.push_back(hyper.key == "lr" ? 1 : hyper.default_value);
    }
    request_ = {.hyper = {spec.hyper}};
    if (has_rule) spec.rule = sgd.id;
    engine_->add_parameters({spec}, stream_);
    return *engine_;
  }

  // A thread that waits for an event that is not done opens the gate, after wrong code had its
  // time.
  std::shared_ptr<Device> opening_when_waited_for() {
    return std::make_shared<WatchedDevice>(device_, [this](Call call, const Event* event) {
      if (call != Call::kSynchronize || !is_holding_) return;
      if (!happens_soon([event] { return event->is_done(); })) gate_.open();
    });
  }
  static bool is_ready(const std::future<void>& future) {
    return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }

  std::vector<float> weight_ = all(10);
  std::vector<float> gradient_ = all(1);
  StepRequest request_;
  Gate gate_;
  std::atomic<bool> is_holding_ = false;
  std::shared_ptr<SimulatedDevice> device_ =
      make_simulated_device({.seed = 3, .max_delay_microseconds = 50, .poison_targets = true});
  ComputeStream stream_ = device_->make_stream();
  ComputeStream held_ = device_->make_stream();
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineOrder, ForgettingWaitsForAccumulationsUnderWay) {
  const auto watched = std::make_shared<WatchedDevice>(device_, [this](Call call, const Event*) {
    if (call == Call::kSynchronize && is_holding_) gate_.wait();
  });
  Engine& engine = make_engine(true, true, watched);
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  is_holding_ = true;
  // One slot: the second micro-batch's chunks wait for the driver, which is held.
  auto second = std::async(std::launch::async, [&] {
    engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
    engine.forget_gradients();
  });
  const auto has_returned = [&] {
    return second.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  };
  EXPECT_FALSE(happens_soon(has_returned));
  gate_.open();
  second.get();
  is_holding_ = false;
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  EXPECT_TRUE(engine.begin_step(request_, stream_));
  engine.finish_step(stream_);
  engine.synchronize();
  EXPECT_EQ(weight_, all(9));
}

// The last slot is taken, so intake is through; only the driver is behind.
TEST_F(EngineOrder, ForgettingWaitsForTheDriver) {
  const auto watched = std::make_shared<WatchedDevice>(device_, [this](Call call, const Event*) {
    if (call == Call::kSynchronize && is_holding_) gate_.wait();
  });
  weight_.resize(100);
  engine_ = std::make_unique<Engine>(EngineOptions{.offload_gradients = true}, watched);
  engine_->add_parameters(
      {{.name = "weight", .weight = weight_.data(), .elements = 100, .rule = {}, .hyper = {}}},
      stream_);
  is_holding_ = true;
  for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
    engine_->gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  }
  auto forgotten = std::async(std::launch::async, [&] { engine_->forget_gradients(); });
  EXPECT_FALSE(happens_soon(
      [&] { return forgotten.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }));
  gate_.open();
  forgotten.get();
  is_holding_ = false;
}

// Nothing depends on all gradients here, so the driver must not wait for the last one.
TEST_F(EngineOrder, AChunkIsUpdatedWhileALaterGradientIsUnderWay) {
  std::atomic<bool> is_sent = false;
  std::promise<void> sent;
  Engine& engine = make_engine(
      false, true, std::make_shared<WatchedDevice>(device_, [&](Call call, const Event*) {
        if (call == Call::kCopyToDevice && !is_sent.exchange(true)) sent.set_value();
      }));
  std::vector<float> other = all(10);
  ParameterSpec spec = *engine.view(0).spec;
  spec.weight = other.data();
  engine.add_parameters({spec}, stream_);
  device_->submit(held_, [this] { gate_.wait(); });
  engine.gradient_ready(1, {gradient_.data(), nullptr}, stream_);
  engine.gradient_ready(0, {gradient_.data(), nullptr}, held_);
  auto begun = std::async(std::launch::async, [&] { return engine.begin_step(request_, held_); });
  EXPECT_EQ(sent.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  gate_.open();
  EXPECT_TRUE(begun.get());
  engine.finish_step(held_);
  engine.synchronize();
  EXPECT_EQ(weight_, all(9));
  EXPECT_EQ(other, all(9));
}

// A second stream makes the next gradient without having waited for the weights to come back.
TEST_F(EngineOrder, AReturnUnderWayIsNotOverwritten) {
  Engine& engine = make_engine(false, true, opening_when_waited_for());
  is_holding_ = true;
  device_->submit(held_, [this] { gate_.wait(); });
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  device_->wait(held_, device_->record(stream_));
  EXPECT_TRUE(engine.begin_step(request_, held_));  // backward's tail is on the held stream
  engine.finish_step(held_);
  std::vector<float> between;
  device_->submit(held_, [&] { between = weight_; });
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  device_->wait(stream_, device_->record(held_));
  EXPECT_TRUE(engine.begin_step(request_, stream_));
  engine.finish_step(stream_);
  engine.synchronize();
  EXPECT_EQ(between, all(9)) << "the first return carried the second update";
  EXPECT_EQ(weight_, all(8));
}

// Parameters without a rule: the caller computes on the host image between begin and finish.
TEST_F(EngineOrder, TheCallerMayComputeTheUpdate) {
  Engine& engine = make_engine(false, false);
  for (int step = 1; step <= 5; ++step) {
    std::vector<float> gradient(kElements);
    device_->submit(stream_, [&] {
      for (size_t i = 0; i < kElements; ++i) gradient[i] = weight_[i] / 2;
    });
    engine.gradient_ready(0, {gradient.data(), nullptr}, stream_);
    EXPECT_TRUE(engine.begin_step(request_, stream_));
    EXPECT_EQ(engine.active_parameters(), std::vector<size_t>{0});
    engine.wait_gradient(0);
    const ParameterView view = engine.view(0);
    for (size_t i = 0; i < kElements; ++i) {
      static_cast<float*>(view.host_weight)[i] -= static_cast<const float*>(view.gradient)[i];
    }
    engine.return_weight(0);
    engine.finish_step(stream_);
  }
  engine.synchronize();
  EXPECT_EQ(weight_, all(10.0f / 32));
  EXPECT_EQ(engine.view(0).step, 5);
}

TEST_F(EngineOrder, TheCallersUpdateWaitsForBackward) {
  Engine& engine = make_engine(false, false);
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  device_->submit(stream_, [this] { gate_.wait(); });  // backward still reads the weight
  EXPECT_TRUE(engine.begin_step(request_, stream_));
  engine.wait_gradient(0);
  static_cast<float*>(engine.view(0).host_weight)[0] = 3;
  engine.return_weight(0);
  engine.finish_step(stream_);
  std::atomic<bool> has_arrived = false;
  const auto arrived = std::async(std::launch::async, [&] {
    engine.synchronize();
    has_arrived = true;
  });
  EXPECT_FALSE(happens_soon([&] { return has_arrived.load(); }));
  gate_.open();
  arrived.wait();
  EXPECT_EQ(weight_[0], 3);
}

TEST_F(EngineOrder, ACallersImageUnderWayIsNotOverwritten) {
  Engine& engine = make_engine(false, false, opening_when_waited_for());
  is_holding_ = true;
  device_->submit(held_, [this] { gate_.wait(); });
  std::vector<float> between;
  for (const float value : {9.0f, 8.0f}) {
    const ComputeStream tail = value == 9 ? held_ : stream_;
    engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
    device_->wait(tail, device_->record(tail == held_ ? stream_ : held_));
    EXPECT_TRUE(engine.begin_step(request_, tail));
    engine.wait_gradient(0);
    std::fill_n(static_cast<float*>(engine.view(0).host_weight), kElements, value);
    engine.return_weight(0);
    engine.finish_step(tail);
    if (tail == held_) device_->submit(held_, [&] { between = weight_; });
  }
  engine.synchronize();
  EXPECT_EQ(between, all(9)) << "the first return carried the second image";
  EXPECT_EQ(weight_, all(8));
}

// The norm is that of the whole sum, also when the driver is late.
TEST_F(EngineOrder, AStepIsDecidedBehindAccumulations) {
  const auto caller = std::this_thread::get_id();
  const auto watched =
      std::make_shared<WatchedDevice>(device_, [this, caller](Call call, const Event*) {
        if (call != Call::kSynchronize || !is_holding_) return;
        if (std::this_thread::get_id() != caller) gate_.wait();
      });
  Engine& engine = make_engine(true, true, watched);
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  is_holding_ = true;
  std::jthread opener([this] {
    happens_soon([] { return false; });
    gate_.open();
  });
  request_.max_gradient_norm = 1;
  EXPECT_TRUE(engine.begin_step(request_, stream_));
  EXPECT_EQ(engine.gradient_scale(), 1 / (std::sqrt(4.0 * kElements) + 1e-6));
  engine.finish_step(stream_);
  engine.synchronize();
}

TEST_F(EngineOrder, SynchronizingWaitsForGradientsUnderWay) {
  Engine& engine = make_engine(true, true);
  device_->submit(stream_, [this] { gate_.wait(); });
  auto owner = std::make_shared<std::vector<float>>(all(1));
  const std::weak_ptr<std::vector<float>> watched = owner;
  const void* const data = owner->data();
  engine.gradient_ready(0, {data, std::move(owner)}, stream_);
  const auto synchronized = std::async(std::launch::async, [&] { engine.synchronize(); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(synchronized); }));
  EXPECT_FALSE(watched.expired());
  gate_.open();
  synchronized.wait();
  EXPECT_TRUE(watched.expired());
}

// A queue that goes does not wait for its copies; the engine must, before its memory goes.
TEST_F(EngineOrder, DestructionWaitsForReturnsUnderWay) {
  const auto watched = std::make_shared<WatchedDevice>(device_, [](Call, const Event*) {});
  Engine& engine = make_engine(false, true, watched);
  engine.gradient_ready(0, {gradient_.data(), nullptr}, stream_);
  device_->wait(held_, device_->record(stream_));
  device_->submit(held_, [this] { gate_.wait(); });
  EXPECT_TRUE(engine.begin_step(request_, held_));
  engine.finish_step(held_);
  const auto gone = std::async(std::launch::async, [this] { engine_.reset(); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(gone); }));
  gate_.open();
  gone.wait();
  EXPECT_EQ(weight_, all(9));
}

}  // namespace
}  // namespace outboard
