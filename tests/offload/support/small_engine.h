// A small engine on the fake device whose every weight has an exact value after every step, and a
// gate before which the engine's threads can be made to stop.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_SMALL_ENGINE_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_SMALL_ENGINE_H_

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/watched_device.h"

namespace outboard::testing {

inline constexpr size_t kElements = 600;

using Values = std::vector<float>;
inline Values all(double value) { return Values(kElements, static_cast<float>(value)); }
// Weights of 10 under SGD with momentum 1 and learning rate 1, gradients of 1, after n steps.
inline Values after(int n) { return all(10 - n * (n + 1) / 2.0); }

inline thread_local bool is_of_test = false;  // hold() lets such threads through

template <class Work>
std::future<void> meanwhile(Work work) {
  return std::async(std::launch::async, [work] {
    is_of_test = true;
    work();
  });
}

inline bool is_ready(const std::future<void>& future) {
  return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

class SmallEngine : public ::testing::Test {
 protected:
  SmallEngine() { is_of_test = true; }
  ~SmallEngine() override {
    gate_->open();
    settle();
    engine_.reset();
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

  Engine& make(const EngineOptions& options, std::vector<Placement> placements, double momentum = 1,
               size_t elements = kElements) {
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
      weights_.emplace_back(elements, 10.0f);
      gradients_.emplace_back(elements, 1.0f);
      specs.push_back({.name = "weight",
                       .weight = weights_.back().data(),
                       .elements = elements,
                       .placement = placement,
                       .rule = sgd.id,
                       .formats = formats_,
                       .hyper = request_.hyper[0]});
    }
    engine_->add_parameters(specs, stream_);
    return *engine_;
  }
  /// What the caller's stream was given, sums and resident updates among it, is not the engine's to
  /// wait for.
  void settle() { device_->record(stream_)->synchronize(); }
  void start_over() {
    settle();
    engine_.reset();
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
    settle();
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
    if (call == Call::kAllocate) ++allocations_;
    if (on_call_) on_call_(call);
    const bool is_held =
        call == Call::kSynchronize || call == Call::kUpdateResident || call == also_holds_;
    if (is_held && is_holding_ && !is_of_test) gate_->wait();
  }

  std::atomic<bool> is_holding_ = false;
  std::function<void(Call)> on_call_;  // set before make()
  std::atomic<int> allocations_ = 0;
  std::atomic<Call> also_holds_ = Call::kUpdateResident;
  std::unique_ptr<Gate> gate_ = std::make_unique<Gate>();
  std::optional<Fault> fault_;
  std::array<StateFormat, kMaxStates> formats_ = {};  // set before make()
  StepRequest request_;
  std::vector<Values> weights_;
  std::vector<Values> gradients_;
  std::shared_ptr<SimulatedDevice> device_ = make_simulated_device({.poison_targets = true});
  ComputeStream stream_ = device_->make_stream();
  std::shared_ptr<WatchedDevice> watched_ =
      std::make_shared<WatchedDevice>(device_, [this](Call call, const Event*) { see(call); });
  std::unique_ptr<Engine> engine_;
};

inline constexpr Placement kHost = Placement::kHost;
inline constexpr Placement kStreamed = Placement::kStreamed;

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_SMALL_ENGINE_H_
