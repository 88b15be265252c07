// What a step that nobody waits for may meet: readers and writers of what it still uses, further
// steps, failures. What would overtake is given time to do so before a gate opens.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/small_engine.h"

namespace outboard {
namespace {

using testing::after;
using testing::all;
using testing::Call;
using testing::Gate;
using testing::happens_soon;
using testing::is_ready;
using testing::kElements;
using testing::kHost;
using testing::kStreamed;
using testing::meanwhile;
using testing::SmallEngine;
using testing::Values;

class EngineBehind : public SmallEngine {};

TEST_F(EngineBehind, WhoDoesNotWaitForAPoisonedWeightReadsNaN) {
  EngineOptions options = behind_the_step();
  options.poison_in_flight = true;
  make(options, {kStreamed, kHost});
  forward();
  backward();
  device_->record(stream_)->synchronize();
  hold();
  EXPECT_TRUE(step(request_));
  std::vector<Values> early, late;
  device_->submit(stream_, [&] { early = weights_; });
  device_->record(stream_)->synchronize();
  gate_->open();
  forward();
  device_->submit(stream_, [&] { late = weights_; });
  device_->record(stream_)->synchronize();
  for (const size_t p : {0, 1}) {
    EXPECT_TRUE(std::ranges::all_of(early[p], [](float value) { return std::isnan(value); }));
    EXPECT_EQ(late[p], after(1));
  }
}

// No forward waited for the weight, so nobody waited for the update to read its gradient.
TEST_F(EngineBehind, AGradientThatIsStillReadIsNotOverwritten) {
  make(behind_the_step(), {kHost});
  backward();
  hold();
  EXPECT_TRUE(step(request_));
  Values other = all(100);
  auto sent = meanwhile([&] { engine_->gradient_ready(0, {other.data(), nullptr}, stream_); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(sent); }));
  gate_->open();
  sent.get();
  engine_->forget_gradients();
  expect_weights(after(1));
}

TEST_F(EngineBehind, WhoWaitsForAWeightReadsIt) {
  make(behind_the_step(), {kStreamed, kHost});
  const ComputeStream held = device_->make_stream();
  backward();
  device_->wait(held, device_->record(stream_));
  device_->submit(held, [this] { gate_->wait(); });
  EXPECT_TRUE(engine_->begin_step(request_, held));  // backward's tail still reads the weights
  engine_->finish_step(held);
  EXPECT_TRUE(engine_->is_updating());
  forward();
  std::vector<Values> seen;
  device_->submit(stream_, [&] { seen = weights_; });
  const EventPtr is_read = device_->record(stream_);
  EXPECT_FALSE(happens_soon([&] { return is_read->is_done(); }));
  gate_->open();
  is_read->synchronize();
  EXPECT_EQ(seen, std::vector<Values>(2, after(1)));
  EXPECT_EQ(weights_, seen);
}

// The lane is busy until all gradients but one are there. By rank alone, that one would be next.
TEST_F(EngineBehind, AGradientThatComesLateHoldsUpNoOther) {
  std::promise<void> is_busy;
  std::atomic<bool> has_begun = false;
  on_call_ = [&](Call call) {
    if (call != Call::kCopyToDevice || has_begun.exchange(true)) return;
    is_busy.set_value();
    gate_->wait();
  };
  make(behind_the_step(), {kHost, kHost, kHost});
  engine_->set_use_order({{2, 1, 0}});
  const ComputeStream late = device_->make_stream();
  Gate late_gate;
  device_->submit(late, [&] { late_gate.wait(); });
  send(0);
  send(1);
  engine_->gradient_ready(2, {gradients_[2].data(), nullptr}, late);
  EXPECT_TRUE(step(request_));
  is_busy.get_future().wait();
  EXPECT_FALSE(happens_soon([] { return false; }));  // the others could be pushed by now
  gate_->open();
  const auto waited = meanwhile([this] { engine_->wait_weights({{0, 1}}, stream_); });
  EXPECT_EQ(waited.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  late_gate.open();
  waited.wait();
  expect_weights(after(1));
}

TEST_F(EngineBehind, AStepWaitsForTheStepBefore) {
  make(behind_the_step(), {kStreamed, kHost});
  send(0);
  hold();
  EXPECT_TRUE(step(request_));
  send(1);
  auto begun = meanwhile([this] { EXPECT_TRUE(step(request_)); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(begun); }));
  gate_->open();
  begun.get();
  expect_weights(after(1));
}

// Whoever reads or writes what an update that nobody waited for still uses.
TEST_F(EngineBehind, WhatChangesParametersWaitsForTheirUpdates) {
  const std::function<void()> changes[] = {
      [this] { engine_->synchronize(); },
      [this] { engine_->reload_weights({{0}}, stream_); },
      [this] { engine_->add_parameters({*engine_->view(0).spec}, stream_); },
      [this] { engine_->set_use_order({{0}}); },
  };
  for (size_t i = 0; i < std::size(changes); ++i) {
    SCOPED_TRACE(i);
    start_over();
    gate_ = std::make_unique<Gate>();
    make(behind_the_step(), {kHost});
    backward();
    hold();
    EXPECT_TRUE(step(request_));
    const auto changed = meanwhile(changes[i]);
    EXPECT_FALSE(happens_soon([&] { return is_ready(changed); }));
    gate_->open();
    changed.wait();
    is_holding_ = false;
    train();
    expect_weights(after(2));
  }
}

// Its updates are enqueued late, and their copies done later still.
TEST_F(EngineBehind, SynchronizingWaitsForUpdatesThatHaveNotBegun) {
  make(behind_the_step(), {kHost});
  const ComputeStream held = device_->make_stream();
  Gate backward_gate;
  backward();
  device_->wait(held, device_->record(stream_));
  device_->submit(held, [&] { backward_gate.wait(); });
  hold();
  EXPECT_TRUE(engine_->begin_step(request_, held));
  engine_->finish_step(held);
  const auto synchronized = meanwhile([this] { engine_->synchronize(); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(synchronized); }));
  gate_->open();
  EXPECT_FALSE(happens_soon([&] { return is_ready(synchronized); }));
  backward_gate.open();
  synchronized.wait();
  EXPECT_EQ(weights_[0], after(1));
}

TEST_F(EngineBehind, SynchronizingWaitsForSumsUnderWay) {
  EngineOptions options = for_good();
  options.schedule = Schedule::kAtStep;
  make(options, {kHost});
  backward();
  engine_->synchronize();
  hold();
  backward();
  const auto synchronized = meanwhile([this] { engine_->synchronize(); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(synchronized); }));
  gate_->open();
  synchronized.wait();
  const auto* const sum = static_cast<const float*>(engine_->view(0).gradient);
  EXPECT_EQ(Values(sum, sum + kElements), all(2));
}

// The caller computes on memory of its own, so the step ends when it is done.
TEST_F(EngineBehind, AStepWithoutARuleIsWaitedFor) {
  make(behind_the_step(), {});
  weights_.push_back(all(10));
  gradients_.push_back(all(1));
  engine_->add_parameters({{.name = "weight",
                            .weight = weights_[0].data(),
                            .elements = kElements,
                            .rule = {},
                            .hyper = {}}},
                          stream_);
  backward();
  EXPECT_TRUE(engine_->begin_step(request_, stream_));
  engine_->wait_gradient(0);
  std::fill_n(static_cast<float*>(engine_->view(0).host_weight), kElements, 3.0f);
  also_holds_ = Call::kCopyToDevice;
  hold();
  engine_->return_weight(0);
  const auto finished = meanwhile([this] { engine_->finish_step(stream_); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(finished); }));
  gate_->open();
  finished.wait();
  device_->record(stream_)->synchronize();
  EXPECT_EQ(weights_[0], all(3));
}

// Every call of the device fails once, in every schedule: the next that is asked of the engine
// says so, and nothing hangs.
TEST_F(EngineBehind, AFailureBehindTheStepIsSaidByTheNextCall) {
  for (const Call call : {Call::kUpdateResident, Call::kCopyToDevice, Call::kCopyToHost}) {
    for (const EngineOptions& options : {tentative(), for_good(), behind_the_step()}) {
      SCOPED_TRACE(static_cast<int>(call));
      start_over();
      make(options, {kStreamed});
      train();
      engine_->synchronize();
      fault_.emplace(call);
      fault_->arm(0);
      const auto train_on = [this] {
        train();
        forward();
      };
      EXPECT_THROW(train_on(), Error);
      EXPECT_TRUE(fault_->has_struck());
      fault_->disarm();
      EXPECT_FALSE(engine_->is_usable());
      EXPECT_THROW(send(0), Error);
      EXPECT_THROW((void)engine_->begin_step(request_, stream_), Error);
      EXPECT_NO_THROW(engine_->announce_step(request_, stream_));
    }
  }
}

// Whatever of a call that throws is under way ends before it throws: then the caller may free what
// copies use.
TEST_F(EngineBehind, AFailedIntakeLeavesNothingUnderWay) {
  EngineOptions options = behind_the_step();
  options.chunk_elements = kNormSegmentElements;
  make(options, {kHost}, 1, 2 * kNormSegmentElements);
  device_->submit(stream_, [this] { gate_->wait(); });
  fault_.emplace(Call::kCopyToHost);
  fault_->arm(1);
  const auto sent = meanwhile([this] { EXPECT_THROW(send(0), Error); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(sent); }));
  gate_->open();
  sent.wait();
  EXPECT_FALSE(engine_->has_gradient(0));
}

TEST_F(EngineBehind, AFailedIntakeLeavesNoSumUnderWay) {
  EngineOptions options = for_good();
  options.slot_bytes = kNormSegmentElements * sizeof(float);
  make(options, {kHost}, 1, 2 * kNormSegmentElements);
  send(0);
  engine_->synchronize();
  fault_.emplace(Call::kCopyToHost);
  fault_->arm(1);
  hold();
  const auto sent = meanwhile([this] { EXPECT_THROW(send(0), Error); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(sent); }));
  gate_->open();
  sent.wait();
  EXPECT_FALSE(engine_->has_gradient(0));
}

TEST_F(EngineBehind, AStepThatIsNotDecidedLeavesNothingUnderWay) {
  make(tentative(), {Placement::kResident});
  backward();
  device_->submit(stream_, [this] { gate_->wait(); });
  fault_.emplace(Call::kSynchronize);
  fault_->arm(0);
  const auto begun =
      meanwhile([this] { EXPECT_THROW((void)engine_->begin_step(request_, stream_), Error); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(begun); }));
  gate_->open();
  begun.wait();
  EXPECT_TRUE(engine_->is_usable());
}

TEST_F(EngineBehind, AStepThatFailsHalfWayLeavesNothingUnderWay) {
  make(behind_the_step(), {kHost, Placement::kResident});
  fault_.emplace(Call::kUpdateResident);
  const ComputeStream held = device_->make_stream();
  backward();
  device_->wait(held, device_->record(stream_));
  device_->submit(held, [this] { gate_->wait(); });
  fault_->arm(0);
  const auto begun =
      meanwhile([&] { EXPECT_THROW((void)engine_->begin_step(request_, held), Error); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(begun); }));
  gate_->open();
  begun.wait();
  EXPECT_FALSE(engine_->is_usable());
}

TEST_F(EngineBehind, NothingGrowsOverManySteps) {
  EngineOptions options = tentative();
  options.max_gradient_norm = 1e6;
  make(options, {kStreamed, kHost, Placement::kResident});
  std::ranges::for_each(gradients_, [](Values& gradient) { std::ranges::fill(gradient, 0.0f); });
  const auto train_some = [this](int steps) {
    for (int n = 0; n < steps; ++n) {
      forward();
      backward();
      EXPECT_TRUE(step(n % 100 == 50 ? with_rate(2) : request_));  // drops a guess now and then
    }
    engine_->synchronize();
  };
  train_some(60);
  const MemoryStats before = engine_->memory();
  train_some(1000);
  const MemoryStats after = engine_->memory();
  EXPECT_EQ(before.host_state, after.host_state);
  EXPECT_EQ(before.host_masters, after.host_masters);
  EXPECT_EQ(before.host_staging, after.host_staging);
  EXPECT_EQ(before.host_pinned, after.host_pinned);
  EXPECT_EQ(before.device_state, after.device_state);
  EXPECT_EQ(before.device_workspace, after.device_workspace);
  EXPECT_GT(engine_->stats().early_updates, 500);
  EXPECT_GT(engine_->stats().dropped_updates, 5);
}

}  // namespace
}  // namespace outboard
