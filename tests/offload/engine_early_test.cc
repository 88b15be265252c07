// What may come between an update that begins in backward and its step: other hyper-parameters,
// further gradients, none at all, another schedule. Each case has exact numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/formats.h"
#include "tests/offload/support/small_engine.h"

namespace outboard {
namespace {

using testing::after;
using testing::all;
using testing::Call;
using testing::formats_named;
using testing::happens_soon;
using testing::kElements;
using testing::kHost;
using testing::kStreamed;
using testing::meanwhile;
using testing::SmallEngine;
using testing::Values;

class EngineEarly : public SmallEngine {};

TEST_F(EngineEarly, AGuessWithOtherHyperParametersIsMadeAgain) {
  make(tentative(), {kStreamed, kStreamed});
  train();
  forward();
  backward();
  EXPECT_EQ(engine_->stats().early_updates, 2);
  EXPECT_TRUE(step(with_rate(2)));
  expect_weights(all(9 - 2 * 2));
  EXPECT_EQ(engine_->stats().dropped_updates, 2);
}

TEST_F(EngineEarly, ASecondForwardDoesNotChangeWhatHasBegun) {
  make(tentative(), {kStreamed});
  train();
  forward();
  backward();
  EXPECT_EQ(engine_->stats().early_updates, 1);
  engine_->announce_step(with_rate(2), stream_);
  EXPECT_TRUE(step(with_rate(2)));
  expect_weights(all(9 - 2 * 2));
}

TEST_F(EngineEarly, AGuessIsMadeAgainWithTheLastGradient) {
  for (const bool is_revision : {false, true}) {
    start_over();
    make(tentative(), {kStreamed});
    train();
    forward();
    send(0);
    engine_->synchronize();  // the guess is through
    EXPECT_EQ(engine_->stats().early_updates, 1);
    std::ranges::fill(gradients_[0], 3.0f);
    send(0, is_revision);
    EXPECT_TRUE(step(request_));
    expect_weights(all(9 - (1 + 3)));
    EXPECT_EQ(engine_->stats().dropped_updates, 1);
  }
}

// The state becomes zeros, so the momentum begins anew.
TEST_F(EngineEarly, AGuessIsMadeAgainWithStatesOfAnotherFormat) {
  for (const bool is_early : {false, true}) {
    start_over();
    make(tentative(), {kStreamed});
    train();
    forward();
    if (is_early) send(0);
    engine_->set_formats(0, formats_named("bf16"));
    if (!is_early) send(0);
    EXPECT_EQ(engine_->stats().early_updates, is_early ? 1 : 0);
    EXPECT_TRUE(step(request_));
    expect_weights(all(9 - 1));
    EXPECT_EQ(engine_->stats().dropped_updates, is_early ? 1 : 0);
  }
}

TEST_F(EngineEarly, AGuessFindsRoomForLongerStates) {
  formats_ = formats_named("8bit");
  make(tentative(), {kStreamed});
  train();
  engine_->set_formats(0, formats_named("fp32"));
  const size_t room = engine_->memory().device_workspace;
  forward();
  EXPECT_GT(engine_->memory().device_workspace, room);
  backward();
  EXPECT_EQ(engine_->stats().early_updates, 1);
  EXPECT_TRUE(step(request_));
  expect_weights(all(9 - 1));
}

TEST_F(EngineEarly, ARevisionIsNoFurtherUse) {
  make(tentative(), {kStreamed});
  forward();
  send(0);
  send(0, /*is_revision=*/true);
  EXPECT_TRUE(step(request_));
  forward();
  send(0);
  EXPECT_EQ(engine_->stats().early_updates, 1);
  EXPECT_TRUE(step(request_));
  expect_weights(after(2));
}

TEST_F(EngineEarly, AsManyGradientsAreWaitedForAsInTheLastStep) {
  make(tentative(), {kStreamed});
  for (int step_number = 1; step_number <= 2; ++step_number) {
    forward();
    for (int use = 0; use < 3; ++use) {
      EXPECT_EQ(engine_->stats().early_updates, 0);
      send(0);
    }
    EXPECT_EQ(engine_->stats().early_updates, step_number - 1);
    EXPECT_TRUE(step(request_));
  }
  expect_weights(after(2));
  EXPECT_EQ(engine_->stats().dropped_updates, 0);
}

TEST_F(EngineEarly, StatesThatDoNotExistYetAreMadeAtTheStep) {
  make(tentative(), {kStreamed}, /*momentum=*/0);
  train();
  request_.hyper[0][1] = 1;
  forward();
  backward();
  EXPECT_EQ(engine_->stats().early_updates, 0);
  EXPECT_TRUE(step(request_));
  expect_weights(all(8));
}

// A state that comes late makes the ring grow, while a guess is on its way to the old one.
TEST_F(EngineEarly, ARingThatAGuessIsPutIntoIsNotReplaced) {
  make(tentative(), {kStreamed});
  Values large(2 * kElements, 10.0f);
  const Values gradient(2 * kElements, 1.0f);
  ParameterSpec spec = *engine_->view(0).spec;
  spec.weight = large.data();
  spec.elements = large.size();
  spec.hyper[1] = 0;
  engine_->add_parameters({spec}, stream_);
  request_.hyper.push_back(spec.hyper);
  request_.group_of = {0, 1};
  const auto send_both = [&] {
    forward();
    send(0);
    engine_->gradient_ready(1, {gradient.data(), nullptr}, stream_);
  };
  send_both();
  EXPECT_TRUE(step(request_));
  engine_->synchronize();
  hold();
  send_both();
  request_.hyper[1][1] = 1;  // momentum
  const int before = allocations_;
  const auto stepped = meanwhile([this] { EXPECT_TRUE(step(request_)); });
  EXPECT_FALSE(happens_soon([&] { return allocations_ != before; }));
  gate_->open();
  stepped.wait();
  expect_weights(after(2));
  EXPECT_GT(allocations_, before);
  EXPECT_EQ(large, Values(2 * kElements, 8.0f));
}

TEST_F(EngineEarly, ForgettingAGuessLeavesEverythingAsItWas) {
  make(tentative(), {kStreamed, kStreamed});
  train();
  engine_->synchronize();
  hold();
  forward();
  backward();  // one guess is stopped in the middle, the other has not begun
  EXPECT_EQ(engine_->stats().early_updates, 2);
  engine_->forget_gradients();
  gate_->open();
  expect_weights(after(1));
  EXPECT_EQ(engine_->stats().dropped_updates, 2);
  for (size_t p = 0; p < 2; ++p) {
    const ParameterView view = engine_->view(p);
    EXPECT_EQ(view.step, 1);
    const auto* const momentum = static_cast<const float*>(view.states[0].codes);
    EXPECT_EQ(Values(momentum, momentum + kElements), all(1));
  }
  train();
  expect_weights(after(2));
}

TEST_F(EngineEarly, UpdatesForGoodRefuseAnotherRequest) {
  make(for_good(), {kStreamed, kHost});
  train();
  forward();
  backward();
  EXPECT_EQ(engine_->stats().early_updates, 2);
  expect_refused(with_rate(2), "hyper-parameters have changed");
  StepRequest clipped = request_;
  clipped.max_gradient_norm = 1;
  expect_refused(clipped, "clipping");
  engine_->set_schedule(Schedule::kNextForward);  // from the next step on
  expect_refused(with_rate(2), "hyper-parameters have changed");
  EXPECT_TRUE(step(request_));
  expect_weights(after(2));
}

TEST_F(EngineEarly, AnUpdateForGoodRefusesAnotherGradient) {
  make(for_good(), {kStreamed, kHost});
  train();
  forward();
  backward();
  for (const size_t p : {0, 1}) {
    try {
      send(p);
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kState);
      EXPECT_NE(std::string(error.what()).find("accumulate()"), std::string::npos) << error.what();
    }
  }
  EXPECT_TRUE(step(request_));  // what was updated is updated, once
  expect_weights(after(2));
  for (const size_t p : {0, 1}) EXPECT_EQ(engine_->view(p).step, 2);
  EXPECT_TRUE(engine_->is_usable());
}

TEST_F(EngineEarly, AGradientThatIsNotTheLastStartsNothing) {
  make(for_good(), {kHost});
  train();
  EXPECT_EQ(engine_->stats().early_updates, 0);
  forward();
  engine_->gradient_ready(0, {.data = gradients_[0].data(), .owner = nullptr, .is_last = false},
                          stream_);
  send(0);
  EXPECT_TRUE(step(request_));
  expect_weights(all(9 - (1 + (1 + 1))));  // the momentum, and the sum of both gradients
  EXPECT_EQ(engine_->stats().early_updates, 0);
}

TEST_F(EngineEarly, AnUpdateForGoodIsNotMadeWithABrokenSum) {
  make(for_good(), {kHost});
  std::ranges::fill(gradients_[0], 0.5f);
  const auto train_twice = [this] {
    forward();
    send(0);
    engine_->synchronize();
    if (engine_->view(0).step == 1 && !fault_->has_struck()) fault_->arm(0);
    send(0);
    return step(request_);
  };
  fault_.emplace(Call::kSynchronize);
  EXPECT_TRUE(train_twice());
  EXPECT_THROW((void)train_twice(), Error);  // the driver fails to add the second micro-batch
  fault_->disarm();
  EXPECT_TRUE(engine_->is_usable());
  EXPECT_THROW(engine_->synchronize(), Error);  // of the driver itself
  expect_weights(after(1));
  EXPECT_EQ(engine_->view(0).step, 1);
}

TEST_F(EngineEarly, SchedulesMayChangeBetweenSteps) {
  make(tentative(), {kStreamed, kHost, Placement::kResident});
  constexpr Schedule kSchedules[] = {Schedule::kInBackward, Schedule::kNextForward,
                                     Schedule::kAtStep};
  for (int n = 0; n < 9; ++n) {
    engine_->set_schedule(kSchedules[(n * n + n / 3) % 3]);
    train();
  }
  expect_weights(after(9));
}

TEST_F(EngineEarly, AScheduleThatChangesAfterTheForwardStartsNothing) {
  make(tentative(), {kStreamed});
  train();
  forward();
  engine_->set_schedule(Schedule::kAtStep);
  backward();
  EXPECT_EQ(engine_->stats().early_updates, 0);
  EXPECT_TRUE(step(request_));
  expect_weights(after(2));
}

TEST_F(EngineEarly, ParametersMayGetNoGradient) {
  for (const EngineOptions& options : {tentative(), for_good()}) {
    start_over();
    make(options, {kStreamed, kHost, kStreamed});
    int updates[] = {0, 0, 0};
    for (int n = 0; n < 12; ++n) {
      forward();
      for (size_t p = 0; p < 3; ++p) {
        if (n % (p + 1) != 0) continue;
        ++updates[p];
        send(p);
      }
      EXPECT_TRUE(step(request_));
    }
    engine_->synchronize();
    for (size_t p = 0; p < 3; ++p) EXPECT_EQ(weights_[p], after(updates[p])) << p;
  }
}

TEST_F(EngineEarly, AnUpdateForGoodCountsAlsoWhenItsGradientIsForgotten) {
  make(for_good(), {kStreamed, kHost});
  train();
  forward();
  backward();
  for (const size_t p : {0, 1}) engine_->forget_gradient(p);
  expect_weights(after(2));
  for (const size_t p : {0, 1}) EXPECT_EQ(engine_->view(p).step, 2);
  request_ = with_rate(2);  // nothing is left that was made with another
  train();
  expect_weights(all(7 - 2 * 3));
}

TEST_F(EngineEarly, WithoutMemoryForSecondCopiesUpdatesBeginWithTheStep) {
  EngineOptions options = tentative();
  options.spare_host_bytes = size_t{1} << 60;
  make(options, {kStreamed});
  const size_t ring = engine_->memory().device_workspace;
  for (int n = 0; n < 3; ++n) train();
  engine_->synchronize();
  EXPECT_EQ(engine_->stats().early_updates, 0);
  expect_weights(after(3));
  const auto warnings = engine_->take_warnings();
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("second copies take"), std::string::npos) << warnings[0];
  EXPECT_NE(warnings[0].find("spare_host_bytes"), std::string::npos) << warnings[0];
  EXPECT_EQ(engine_->memory().device_workspace, ring);
}

}  // namespace
}  // namespace outboard
