// What may come between an update that begins in backward and its step, and what a step that is
// not waited for may meet: changed hyper-parameters, further gradients, failures. Each case has
// exact numbers; what would overtake is given time to do so.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::Fault;
using testing::Gate;
using testing::happens_soon;
using testing::WatchedDevice;

constexpr size_t kElements = 600;

using Values = std::vector<float>;
Values all(double value) { return Values(kElements, static_cast<float>(value)); }
// Weights of 10 under SGD with momentum 1 and learning rate 1, gradients of 1, after n steps.
Values after(int n) { return all(10 - n * (n + 1) / 2.0); }

bool is_ready(const std::future<void>& future) {
  return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

class EngineEarly : public ::testing::Test {
 protected:
  ~EngineEarly() override {
    gate_.open();
    engine_.reset();
    device_->record(stream_)->synchronize();
  }

  static EngineOptions tentative() {
    return {.schedule = Schedule::kInBackward, .threads = 1, .stream_slots = 2};
  }
  static EngineOptions for_good() {
    EngineOptions options = tentative();
    options.offload_gradients = true;
    options.skip_nonfinite = false;
    return options;
  }
  // Nothing waits for anything but the weights' readers.
  static EngineOptions behind_the_step() {
    EngineOptions options = tentative();
    options.schedule = Schedule::kNextForward;
    options.skip_nonfinite = false;
    return options;
  }

  Engine& make(const EngineOptions& options, std::vector<Placement> placements,
               double momentum = 1) {
    const RuleInfo& sgd = rule_named("SGD");
    engine_ = std::make_unique<Engine>(options, watched_);
    request_.hyper = {{}};
    for (const HyperParameter& hyper : sgd.hyper_parameters) {
      request_.hyper[0].push_back(hyper.key == "lr"         ? 1
                                  : hyper.key == "momentum" ? momentum
                                                            : hyper.default_value);
    }
    std::vector<ParameterSpec> specs;
    for (const Placement placement : placements) {
      weights_.push_back(all(10));
      gradients_.push_back(all(1));
      specs.push_back({.name = "weight",
                       .weight = weights_.back().data(),
                       .elements = kElements,
                       .placement = placement,
                       .rule = sgd.id,
                       .hyper = request_.hyper[0]});
    }
    engine_->add_parameters(specs, stream_);
    return *engine_;
  }
  void start_over() {
    engine_.reset();
    device_->record(stream_)->synchronize();
    weights_.clear();
    gradients_.clear();
  }
  [[nodiscard]] StepRequest with_rate(double rate) const {
    StepRequest request = request_;
    request.hyper[0][0] = rate;
    return request;
  }
  void forward() {
    engine_->announce_step(request_, stream_);
    for (size_t p = 0; p < weights_.size(); ++p) engine_->wait_weights({{p}}, stream_);
  }
  void send(size_t p, bool is_revision = false) {
    engine_->gradient_ready(
        p, {.data = gradients_[p].data(), .owner = nullptr, .is_revision = is_revision}, stream_);
  }
  void backward() {
    for (size_t p = 0; p < weights_.size(); ++p) send(p);
  }
  bool step(const StepRequest& request) {
    const bool is_taken = engine_->begin_step(request, stream_);
    engine_->finish_step(stream_);
    return is_taken;
  }
  void train() {
    forward();
    backward();
    EXPECT_TRUE(step(request_));
  }
  void expect_weights(const Values& expected) {
    engine_->synchronize();
    for (const Values& weight : weights_) EXPECT_EQ(weight, expected);
  }
  void expect_refused(const StepRequest& request, const std::string& part) {
    try {
      (void)engine_->begin_step(request, stream_);
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kState);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  // From now on the engine's threads stop before they wait for a gradient or enqueue a kernel.
  void hold() { is_holding_ = true; }
  void see(Call call) {
    if (fault_) fault_->see(call);
    const bool is_held = call == Call::kSynchronize || call == Call::kUpdateResident;
    if (is_held && is_holding_ && std::this_thread::get_id() != caller_) gate_.wait();
  }

  std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> is_holding_ = false;
  Gate gate_;
  std::optional<Fault> fault_;
  StepRequest request_;
  std::vector<Values> weights_;
  std::vector<Values> gradients_;
  std::shared_ptr<SimulatedDevice> device_ = make_simulated_device({.poison_targets = true});
  ComputeStream stream_ = device_->make_stream();
  std::shared_ptr<WatchedDevice> watched_ =
      std::make_shared<WatchedDevice>(device_, [this](Call call, const Event*) { see(call); });
  std::unique_ptr<Engine> engine_;
};

constexpr Placement kHost = Placement::kHost;
constexpr Placement kStreamed = Placement::kStreamed;

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

TEST_F(EngineEarly, ForgettingAGuessLeavesEverythingAsItWas) {
  make(tentative(), {kStreamed, kStreamed});
  train();
  engine_->synchronize();
  hold();
  forward();
  backward();  // one guess is stopped in the middle, the other has not begun
  EXPECT_EQ(engine_->stats().early_updates, 2);
  engine_->forget_gradients();
  gate_.open();
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

TEST_F(EngineEarly, WhoDoesNotWaitForAPoisonedWeightReadsNaN) {
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
  gate_.open();
  forward();
  device_->submit(stream_, [&] { late = weights_; });
  device_->record(stream_)->synchronize();
  for (const size_t p : {0, 1}) {
    EXPECT_TRUE(std::ranges::all_of(early[p], [](float value) { return std::isnan(value); }));
    EXPECT_EQ(late[p], after(1));
  }
}

// No forward waited for the weight, so nobody waited for the update to read its gradient.
TEST_F(EngineEarly, AGradientThatIsStillReadIsNotOverwritten) {
  make(behind_the_step(), {kHost});
  backward();
  hold();
  EXPECT_TRUE(step(request_));
  Values other = all(100);
  auto sent = std::async(std::launch::async, [&] {
    engine_->gradient_ready(0, {other.data(), nullptr}, stream_);
  });
  EXPECT_FALSE(happens_soon([&] { return is_ready(sent); }));
  gate_.open();
  sent.get();
  engine_->forget_gradients();
  expect_weights(after(1));
}

TEST_F(EngineEarly, WhoWaitsForAWeightReadsIt) {
  make(behind_the_step(), {kStreamed, kHost});
  const ComputeStream held = device_->make_stream();
  backward();
  device_->wait(held, device_->record(stream_));
  device_->submit(held, [this] { gate_.wait(); });
  EXPECT_TRUE(engine_->begin_step(request_, held));  // backward's tail still reads the weights
  engine_->finish_step(held);
  EXPECT_TRUE(engine_->is_updating());
  forward();
  std::vector<Values> seen;
  device_->submit(stream_, [&] { seen = weights_; });
  const EventPtr is_read = device_->record(stream_);
  EXPECT_FALSE(happens_soon([&] { return is_read->is_done(); }));
  gate_.open();
  is_read->synchronize();
  EXPECT_EQ(seen, std::vector<Values>(2, after(1)));
  EXPECT_EQ(weights_, seen);
}

TEST_F(EngineEarly, AStepWaitsForTheStepBefore) {
  make(behind_the_step(), {kStreamed, kHost});
  send(0);
  hold();
  EXPECT_TRUE(step(request_));
  send(1);
  auto begun = std::async(std::launch::async, [this] { EXPECT_TRUE(step(request_)); });
  EXPECT_FALSE(happens_soon([&] { return is_ready(begun); }));
  gate_.open();
  begun.get();
  expect_weights(after(1));
}

TEST_F(EngineEarly, AnUpdateForGoodCountsAlsoWhenItsGradientIsForgotten) {
  make(for_good(), {kStreamed, kHost});
  train();
  forward();
  backward();
  engine_->forget_gradients();
  expect_weights(after(2));
  for (const size_t p : {0, 1}) EXPECT_EQ(engine_->view(p).step, 2);
  train();
  expect_weights(after(3));
}

// Every call of the device fails once, in every schedule: the next that is asked of the engine
// says so, and nothing hangs.
TEST_F(EngineEarly, AFailureBehindTheStepIsSaidByTheNextCall) {
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
      if (call != Call::kCopyToHost) {  // the gradients' sums as well, which change nothing
        EXPECT_FALSE(engine_->is_usable());
        EXPECT_THROW(send(0), Error);
        EXPECT_THROW((void)engine_->begin_step(request_, stream_), Error);
        EXPECT_NO_THROW(engine_->announce_step(request_, stream_));
      }
    }
  }
}

TEST_F(EngineEarly, NothingGrowsOverManySteps) {
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
