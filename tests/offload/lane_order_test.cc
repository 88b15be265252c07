// The stream lane without the pipeline around it: every wait that orders a piece's way through the
// device, each forced with a gate. What would overtake is given time to do so before the gate
// opens.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "offload/progress.h"
#include "offload/state_store.h"
#include "offload/stream_lane.h"
#include "offload/trace.h"
#include "outboard/error.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::Gate;
using testing::happens_soon;
using testing::WatchedDevice;

constexpr size_t kElements = 600;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Values = std::vector<float>;
Values all(float value) { return Values(kElements, value); }

// fp32 weights of 10 under SGD with momentum 1 and learning rate 1, in their second step: buffers
// of 5 and gradients of 1 make buffers of 6 and weights of 4.
class LaneOrder : public ::testing::Test {
 protected:
  static constexpr float kOldState = 5, kNewState = 6, kOldWeight = 10, kNewWeight = 4;

  LaneOrder() {
    const RuleInfo& sgd = rule_named("SGD");
    for (const HyperParameter& hyper : sgd.hyper_parameters) {
      hyper_.push_back(hyper.key == "lr" || hyper.key == "momentum" ? 1 : hyper.default_value);
    }
    for (size_t p = 0; p < weights_.size(); ++p) {
      auto parameter = std::make_unique<Parameter>();
      parameter->spec = {.name = std::to_string(p),
                         .weight = weights_[p].data(),
                         .elements = kElements,
                         .placement = Placement::kStreamed,
                         .rule = sgd.id,
                         .hyper = hyper_};
      parameter->index = parameter->rank = p;
      parameter->returned.resize(1);
      parameters_.push_back(std::move(parameter));
    }
    sums_ = store_.add(parameters_);
    EXPECT_TRUE(store_.ensure_second_copies(parameters_));
    for (size_t p = 0; p < weights_.size(); ++p) std::fill_n(state(p), kElements, kOldState);
    fake_->submit(held_, [this] { gate_.wait(); });
    is_open_ = device_->record(held_);
    reserve(stream_);
  }
  ~LaneOrder() override {
    open();
    lane_.drain();
    lane_.flush(true)->synchronize();
    device_->record(held_)->synchronize();
  }

  void open() {
    gate_.open();
    thread_gate_.open();
  }
  // Work that the lane's events may be made to wait for: done once the gate is open.
  template <class Work>
  EventPtr when_open(Work work) {
    fake_->submit(held_, work);
    return device_->record(held_);
  }
  void reserve(ComputeStream stream, const Engine::Allocator& allocator = {}) {
    const size_t bytes = StreamLane::slot_bytes(*parameters_[0], kElements);
    EXPECT_EQ(lane_.reserve(bytes, allocator ? allocator : store_.allocator(), stream), 2 * bytes);
  }
  [[nodiscard]] float* state(size_t p) const {
    return static_cast<float*>(parameters_[p]->states[0].codes);
  }
  [[nodiscard]] Values state_of(size_t p) const { return {state(p), state(p) + kElements}; }

  [[nodiscard]] StreamWorkPtr work(size_t p) {
    Parameter& parameter = *parameters_[p];
    auto work = std::make_shared<StreamWork>();
    work->parameter = &parameter;
    work->update = {.rule = *parameter.spec.rule,
                    .scalars = rule_info(*parameter.spec.rule).scalars(hyper_, 2, 1.0),
                    .step = 2,
                    .elements = kElements,
                    .gradient = gradient_.data(),
                    .weight = weights_[p].data(),
                    .formats = parameter.spec.formats};
    work->from = work->to = {parameter.master, parameter.states};
    return work;
  }
  // As an update that begins in backward, into second copies.
  [[nodiscard]] StreamWorkPtr guess(size_t p) {
    StreamWorkPtr guess = work(p);
    guess->to = parameters_[p]->second;
    guess->shadow = parameters_[p]->shadow.get();
    guess->is_accepted = false;
    return guess;
  }
  void push(const StreamWorkPtr& work) {
    if (work->is_accepted) progress_.begin(*work->parameter, 1);
    lane_.push(work);
  }
  void accept(const StreamWorkPtr& work, const EventPtr& weight_is_free) {
    progress_.begin(*work->parameter, 1);
    lane_.accept({work}, weight_is_free);
  }
  void expect_updated(size_t p) {
    lane_.flush(true)->synchronize();
    EXPECT_EQ(weights_[p], all(kNewWeight));
    EXPECT_EQ(state_of(p), all(kNewState));
  }
  // Nothing of the weight changes as long as the gate is closed, and everything afterwards.
  void expect_update_when_open(size_t p) {
    EXPECT_FALSE(happens_soon([&] { return weights_[p] != all(kOldWeight); }));
    open();
    expect_updated(p);
  }
  void see(Call call) {
    if (call == Call::kUpdateResident) {
      ++kernels_;
      if (on_kernel_) on_kernel_();
    }
    if (call == Call::kCopyToDevice) ++copies_up_;
  }

  Gate gate_;         // of the stream held_
  Gate thread_gate_;  // of whichever thread a test stops
  std::atomic<int> kernels_ = 0;
  std::atomic<int> copies_up_ = 0;
  std::function<void()> on_kernel_;  // set before anything is pushed
  std::vector<double> hyper_;
  std::vector<Values> weights_ = std::vector<Values>(4, all(kOldWeight));
  Values gradient_ = all(1);
  Values seen_;  // by whom the old weight is for
  std::shared_ptr<SimulatedDevice> fake_ = make_simulated_device({.poison_targets = true});
  ComputeStream stream_ = fake_->make_stream();
  ComputeStream held_ = fake_->make_stream();
  EventPtr is_open_;
  std::shared_ptr<WatchedDevice> device_ =
      std::make_shared<WatchedDevice>(fake_, [this](Call call, const Event*) { see(call); });
  StateStore store_{{}, device_, {}};
  std::vector<ParameterPtr> parameters_;
  SegmentSums sums_;
  Progress progress_;
  Trace trace_{device_};
  std::atomic<int> failures_ = 0;
  StreamLane lane_{device_, progress_, trace_, 2, [this](const std::exception&) { ++failures_; }};
};

TEST_F(LaneOrder, AStateOnItsWayDownIsNotReadYet) {
  std::fill_n(state(0), kElements, kNaN);
  parameters_[0]->returned[0] = when_open([this] { std::fill_n(state(0), kElements, kOldState); });
  push(work(0));
  expect_update_when_open(0);
}

TEST_F(LaneOrder, TheKernelWaitsForItsState) {
  parameters_[0]->returned[0] = is_open_;  // holds the copy up
  push(work(0));
  expect_update_when_open(0);
}

TEST_F(LaneOrder, TheKernelWaitsForItsGradient) {
  std::ranges::fill(gradient_, kNaN);
  const StreamWorkPtr first = work(0);
  first->gradient_ready = when_open([this] { std::ranges::fill(gradient_, 1.0f); });
  push(first);
  expect_update_when_open(0);
}

TEST_F(LaneOrder, TheKernelWaitsForReadersOfTheOldWeight) {
  const StreamWorkPtr first = work(0);
  first->weight_is_free = when_open([this] { seen_ = weights_[0]; });
  push(first);
  expect_update_when_open(0);
  EXPECT_EQ(seen_, all(kOldWeight));
}

TEST_F(LaneOrder, KernelsWaitForWhatTheyAreToldToComeAfter) {
  lane_.after(is_open_);
  push(work(0));
  expect_update_when_open(0);
}

TEST_F(LaneOrder, TheStateGoesDownBehindTheKernel) {
  const StreamWorkPtr first = work(0);
  first->gradient_ready = is_open_;
  push(first);
  EXPECT_FALSE(happens_soon([this] { return state_of(0) != all(kOldState); }));
  open();
  expect_updated(0);
}

TEST_F(LaneOrder, NoMorePiecesAreUnderWayThanThereAreSlots) {
  for (size_t p = 0; p < 3; ++p) {
    const StreamWorkPtr piece = work(p);
    piece->gradient_ready = is_open_;
    push(piece);
  }
  EXPECT_FALSE(happens_soon([this] { return copies_up_ > 2; }));
  open();
  for (size_t p = 0; p < 3; ++p) expect_updated(p);
}

TEST_F(LaneOrder, AnAcceptedWeightWaitsForReadersOfTheOldOne) {
  const StreamWorkPtr first = guess(0);
  push(first);
  lane_.drain();
  accept(first, when_open([this] { seen_ = weights_[0]; }));
  EXPECT_FALSE(happens_soon([this] { return weights_[0] != all(kOldWeight); }));
  open();
  lane_.flush(true)->synchronize();
  EXPECT_EQ(seen_, all(kOldWeight));
  EXPECT_EQ(weights_[0], all(kNewWeight));
  EXPECT_EQ(state_of(0), all(kOldState)) << "a guess is written to the second copies";
}

// The lane is in the middle of the piece: both it and accept() see that it is to be finished.
TEST_F(LaneOrder, WhatIsAcceptedWhileItBeginsIsFinishedOnce) {
  std::promise<void> has_begun;
  on_kernel_ = [&] {
    has_begun.set_value();
    thread_gate_.wait();
  };
  const StreamWorkPtr first = guess(0);
  push(first);
  has_begun.get_future().wait();
  progress_.begin(*parameters_[0], 1);  // as if of another piece: counts what is too much
  accept(first, nullptr);
  open();
  lane_.drain();
  EXPECT_EQ(parameters_[0]->pieces_under_way, 1u);
  progress_.end(*parameters_[0], nullptr);
  lane_.flush(true)->synchronize();
  EXPECT_EQ(weights_[0], all(kNewWeight));
}

TEST_F(LaneOrder, WhatWasCancelledDoesNotBegin) {
  std::promise<void> has_begun;
  on_kernel_ = [&] {
    if (kernels_ == 1) has_begun.set_value();
    thread_gate_.wait();
  };
  const StreamWorkPtr first = guess(0);
  const StreamWorkPtr second = guess(1);
  push(first);
  has_begun.get_future().wait();
  push(second);
  lane_.cancel({first, second});
  open();
  lane_.flush(true)->synchronize();
  EXPECT_EQ(kernels_, 1);
  EXPECT_EQ(weights_[0], all(kOldWeight)) << "a guess that nobody accepts changes nothing";
  push(work(0));
  push(work(1));
  for (const size_t p : {0, 1}) expect_updated(p);
}

TEST_F(LaneOrder, AFlushIsBehindAcceptedWeights) {
  const StreamWorkPtr first = guess(0);
  push(first);
  lane_.drain();
  accept(first, is_open_);
  const EventPtr with_state = lane_.flush(true);
  const EventPtr behind = lane_.flush(false);
  EXPECT_FALSE(happens_soon([&] { return with_state->is_done() || behind->is_done(); }));
  open();
  with_state->synchronize();
  EXPECT_EQ(weights_[0], all(kNewWeight));
}

TEST_F(LaneOrder, AGradientIsKeptUntilItWasRead) {
  auto owner = std::make_shared<int>();
  const std::weak_ptr<int> watched = owner;
  StreamWorkPtr first = work(0);
  first->gradient_ready = is_open_;
  first->gradient_owner = std::move(owner);
  push(std::exchange(first, nullptr));
  lane_.drain();
  EXPECT_FALSE(watched.expired());
  StreamWorkPtr second = work(1);  // lets go of what is through
  second->gradient_ready = is_open_;
  push(std::exchange(second, nullptr));
  lane_.drain();
  EXPECT_FALSE(watched.expired());
  const auto flushed = std::async(std::launch::async, [this] { (void)lane_.flush(true); });
  EXPECT_FALSE(happens_soon([&] { return watched.expired(); }));
  open();
  flushed.wait();
  EXPECT_TRUE(watched.expired());
}

TEST_F(LaneOrder, ANewRingIsUsedWhenItsStreamHasMadeIt) {
  reserve(held_, [this](size_t bytes) {
    auto memory = fake_->allocate(bytes);
    fake_->submit(held_, [to = static_cast<float*>(memory.get()), bytes] {
      std::fill_n(to, bytes / sizeof(float), kNaN);
    });
    return memory;
  });
  push(work(0));
  expect_update_when_open(0);
}

TEST_F(LaneOrder, AnOldRingGoesWhenNothingUsesIt) {
  std::atomic<bool> is_gone = false;
  reserve(stream_, [&](size_t bytes) {
    std::shared_ptr<void> memory = fake_->allocate(bytes);
    void* const data = memory.get();
    return std::shared_ptr<void>(data, [&is_gone, memory](void*) { is_gone = true; });
  });
  const StreamWorkPtr first = work(0);
  first->gradient_ready = is_open_;
  push(first);
  lane_.drain();
  const auto reserved = std::async(std::launch::async, [this] { reserve(stream_); });
  EXPECT_FALSE(happens_soon([&] { return is_gone.load(); }));
  open();
  reserved.wait();
  EXPECT_TRUE(is_gone);
  expect_updated(0);
}

// By rank alone the first would be taken, and its gradient, which comes last, waited for.
TEST_F(LaneOrder, AGradientThatComesLateHoldsUpNoOther) {
  std::promise<void> has_begun;
  on_kernel_ = [&] {
    if (kernels_ == 1) has_begun.set_value();
    thread_gate_.wait();
  };
  push(work(3));
  has_begun.get_future().wait();
  push(work(1));
  push(work(2));
  const StreamWorkPtr late = work(0);
  late->gradient_ready = is_open_;
  push(late);
  thread_gate_.open();
  const auto enqueued = std::async(std::launch::async, [this] { lane_.drain(); });
  if (enqueued.wait_for(std::chrono::seconds(10)) != std::future_status::ready) {
    open();
    FAIL() << "the late gradient fills the ring";
  }
  for (const size_t p : {1, 2}) {
    const EventPtr current = progress_.wait(*parameters_[p]);
    EXPECT_TRUE(happens_soon([&] { return current == nullptr || current->is_done(); })) << p;
  }
  expect_update_when_open(0);
}

TEST_F(LaneOrder, WhatTheForwardNeedsFirstComesFirst) {
  std::promise<void> has_begun;
  const StreamWorkPtr works[] = {work(3), work(2), work(1)};
  bool is_first = false;
  on_kernel_ = [&] {
    if (kernels_ == 1) has_begun.set_value();
    thread_gate_.wait();
    if (kernels_ == 2) is_first = works[1]->phase == StreamWork::Phase::kWaiting;
  };
  push(works[0]);
  has_begun.get_future().wait();
  push(works[1]);
  push(works[2]);
  open();
  for (const size_t p : {1, 2, 3}) expect_updated(p);
  EXPECT_EQ(kernels_, 3);
  EXPECT_TRUE(is_first);
}

TEST_F(LaneOrder, AFailureIsReportedAtOnceAndRethrown) {
  on_kernel_ = [] { fail(ErrorKind::kDevice, "Test", "injected; catch it"); };
  push(work(0));
  lane_.drain();
  EXPECT_EQ(failures_, 1);
  EXPECT_THROW(lane_.rethrow_failure(), Error);
  EXPECT_NO_THROW(lane_.rethrow_failure());
  progress_.fail();
  EXPECT_EQ(progress_.wait(*parameters_[0]), nullptr);
}

}  // namespace
}  // namespace outboard
