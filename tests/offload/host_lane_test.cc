// The host lane and the bookkeeping of what is under way, without the pipeline around them.
#include "offload/host_lane.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "offload/gradient_intake.h"
#include "offload/progress.h"
#include "offload/state_store.h"
#include "offload/trace.h"
#include "offload/weight_reader.h"
#include "outboard/error.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::Gate;
using testing::happens_soon;
using testing::WatchedDevice;

constexpr size_t kElements = 600;

using Values = std::vector<float>;
Values all(float value) { return Values(kElements, value); }

template <class Result>
bool is_ready(const std::future<Result>& future) {
  return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

// fp32 weights of 10 under plain SGD with learning rate 1, gradients of 1.
class HostLaneOrder : public ::testing::Test {
 protected:
  HostLaneOrder() {
    const RuleInfo& sgd = rule_named("SGD");
    for (const HyperParameter& hyper : sgd.hyper_parameters) {
      hyper_.push_back(hyper.key == "lr" ? 1 : hyper.default_value);
    }
    for (size_t p = 0; p < weights_.size(); ++p) {
      auto parameter = std::make_unique<Parameter>();
      parameter->spec = {.name = std::to_string(p),
                         .weight = weights_[p].data(),
                         .elements = kElements,
                         .rule = sgd.id,
                         .hyper = hyper_};
      parameter->index = parameter->rank = p;
      parameter->returned.resize(1);
      parameter->scalars = rule_info(sgd.id).scalars(hyper_, 1, 1.0);
      parameters_.push_back(std::move(parameter));
    }
    sums_ = store_.add(parameters_);
    for (const ParameterPtr& parameter : parameters_) {
      Parameter* const read = parameter.get();
      read_weights({&read, 1}, device_.get(), intake_.queue(), stream_, arena_);
      intake_.store(*read, gradient_.data(), stream_)->synchronize();
    }
    fake_->submit(held_, [this] { gate_.wait(); });
  }
  ~HostLaneOrder() override {
    open();
    lane_.drain();
    lane_.flush()->synchronize();
    fake_->record(held_)->synchronize();
  }

  void open() {
    gate_.open();
    thread_gate_.open();
  }
  void push(size_t p, EventPtr weight_is_free = nullptr) {
    Parameter& parameter = *parameters_[p];
    progress_.begin(parameter, 1);
    lane_.push({.parameter = &parameter,
                .index = 0,
                .first = 0,
                .last = kElements,
                .arrival = intake_.piece(parameter, 0),
                .gradient = parameter.gradient(),
                .gradient_type = parameter.gradient_type(),
                .step = 1,
                .weight_is_free = std::move(weight_is_free)});
  }
  [[nodiscard]] float image(size_t p) const {
    return *static_cast<const float*>(parameters_[p]->host_weight);
  }
  void see(Call call) {
    if (call == Call::kCopyToDevice && on_send_) on_send_();
  }

  Gate gate_;         // of the stream held_
  Gate thread_gate_;  // of the lane
  std::function<void()> on_send_;
  std::vector<double> hyper_;
  std::vector<Values> weights_ = std::vector<Values>(3, all(10));
  Values gradient_ = all(1);
  std::shared_ptr<SimulatedDevice> fake_ = make_simulated_device({.poison_targets = true});
  ComputeStream stream_ = fake_->make_stream();
  ComputeStream held_ = fake_->make_stream();
  std::shared_ptr<WatchedDevice> device_ =
      std::make_shared<WatchedDevice>(fake_, [this](Call call, const Event*) { see(call); });
  StateStore store_{{}, device_, {}};
  std::vector<ParameterPtr> parameters_;
  SegmentSums sums_;
  cpu::Arena arena_{1};
  GradientIntake intake_{device_, kNormSegmentElements};
  Progress progress_;
  Trace trace_{device_};
  std::atomic<int> failures_ = 0;
  HostLane lane_{arena_, device_.get(),        progress_,
                 trace_, /*chunk_elements=*/1, [this](const std::exception&) { ++failures_; }};
};

TEST_F(HostLaneOrder, AWeightGoesUpWhenNobodyReadsTheOldOne) {
  Values seen;
  fake_->submit(held_, [&] { seen = weights_[0]; });
  push(0, device_->record(held_));
  lane_.drain();
  const EventPtr sent = lane_.flush();
  EXPECT_FALSE(happens_soon([&] { return sent->is_done(); }));
  EXPECT_FALSE(progress_.wait(*parameters_[0])->is_done());
  open();
  sent->synchronize();
  EXPECT_EQ(seen, all(10));
  EXPECT_EQ(weights_[0], all(9));
}

TEST_F(HostLaneOrder, WhatTheForwardNeedsFirstComesFirst) {
  std::promise<void> has_begun;
  int sent = 0;
  bool is_first = false;
  on_send_ = [&] {
    if (++sent == 1) has_begun.set_value();
    thread_gate_.wait();
    if (sent == 2) is_first = image(0) == 9 && image(1) == 10;
  };
  push(2);
  has_begun.get_future().wait();
  push(1);
  push(0);
  thread_gate_.open();
  lane_.drain();
  EXPECT_EQ(sent, 3);
  EXPECT_TRUE(is_first);
}

TEST_F(HostLaneOrder, AFailureIsReportedAtOnceAndRethrown) {
  on_send_ = [] { fail(ErrorKind::kDevice, "Test", "injected; catch it"); };
  push(0);
  lane_.drain();
  EXPECT_EQ(failures_, 1);
  EXPECT_THROW(lane_.rethrow_failure(), Error);
  EXPECT_NO_THROW(lane_.rethrow_failure());
}

class ProgressOrder : public ::testing::Test {
 protected:
  ~ProgressOrder() override { progress_.fail(); }
  std::future<EventPtr> wait() {
    return std::async(std::launch::async, [this] { return progress_.wait(parameter_); });
  }
  std::future<void> wait_all() {
    return std::async(std::launch::async, [this] { progress_.wait_all(); });
  }

  Progress progress_;
  Parameter parameter_;
  std::shared_ptr<SimulatedDevice> device_ = make_simulated_device({});
};

TEST_F(ProgressOrder, AReaderWaitsUntilEveryPieceIsEnqueued) {
  progress_.begin(parameter_, 2);
  auto current = wait();
  const auto everything = wait_all();
  progress_.end(parameter_, nullptr);
  EXPECT_FALSE(happens_soon([&] { return is_ready(current) || is_ready(everything); }));
  Gate gate;
  const ComputeStream stream = device_->make_stream();
  device_->submit(stream, [&] { gate.wait(); });
  const EventPtr event = device_->record(stream);
  progress_.end(parameter_, event);
  everything.wait();
  EXPECT_EQ(current.get(), event);
  EXPECT_EQ(progress_.wait(parameter_), event);  // still: it is not done
  EXPECT_TRUE(progress_.is_busy(parameter_));
  gate.open();
  event->synchronize();
  EXPECT_EQ(progress_.wait(parameter_), nullptr);
  EXPECT_FALSE(progress_.is_busy(parameter_));
  EXPECT_FALSE(progress_.is_busy());
}

TEST_F(ProgressOrder, NobodyWaitsForWhatWillNeverCome) {
  progress_.begin(parameter_, 1);
  auto current = wait();
  const auto everything = wait_all();
  EXPECT_FALSE(happens_soon([&] { return is_ready(current) || is_ready(everything); }));
  progress_.fail();
  const auto has_ended = [](const auto& future) {
    return future.wait_for(std::chrono::seconds(10)) == std::future_status::ready;
  };
  const bool have_ended = has_ended(current) && has_ended(everything);
  EXPECT_TRUE(have_ended);
  if (!have_ended) progress_.end(parameter_, nullptr);  // lets the futures go
  EXPECT_EQ(current.get(), nullptr);
}

}  // namespace
}  // namespace outboard
