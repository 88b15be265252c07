// Steps with an Inf or NaN anywhere in any gradient change nothing at all and are counted; training
// then goes on as if the step had not been asked for.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/offload/support/overlapped_trainer.h"
#include "tests/offload/support/plain_trainer.h"
#include "tests/offload/support/trial.h"

namespace outboard {
namespace {

using testing::Clip;
using testing::Outcome;
using testing::OverlappedTrainer;
using testing::PlainTrainer;
using testing::Trial;

constexpr int kBadStep = 2;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Trial trial_with(uint64_t seed, testing::Spoiled spoiled) {
  Trial trial{.seed = seed,
              .offload_gradients = seed % 2 == 0,
              .accumulation = seed % 4 < 2 ? 1 : 3,
              .clip = seed % 3 == 0 ? Clip::kSometimes : Clip::kOff,
              .has_unused = false,
              .parameters = testing::parameters_of_every_kind(seed)};
  trial.spoiled = spoiled;
  trial.spoiled.step = kBadStep;
  trial.spoiled.micro_batch = trial.accumulation - 1;
  return trial;
}

std::shared_ptr<SimulatedDevice> delayed_device(uint64_t seed) {
  return make_simulated_device(
      {.seed = seed, .max_delay_microseconds = 40, .poison_targets = true});
}

Outcome train(const Trial& trial) {
  const auto device = delayed_device(trial.seed);
  return OverlappedTrainer(trial, device, device, device->make_stream()).run();
}

// In every parameter in turn, at a place that changes.
TEST(EngineSkip, OneBadValueInAnyParameterSkipsTheStep) {
  const size_t count = testing::parameters_of_every_kind(1).size();
  constexpr std::array kBad{kNaN, kInfinity, -kInfinity};
  for (size_t p = 0; p < count; ++p) {
    if (testing::parameters_of_every_kind(p)[p].elements == 0) continue;
    SCOPED_TRACE("parameter " + std::to_string(p));
    Trial trial = trial_with(p, {.parameter = p, .value = kBad[p % 3]});
    trial.spoiled.element = splitmix64(p) % trial.parameters[p].elements;
    const Outcome actual = train(trial);
    EXPECT_EQ(actual.skipped_steps, 1);
    EXPECT_TRUE(testing::same_outcome(PlainTrainer(trial).run(), actual));
  }
}

TEST(EngineSkip, TheLastElementCounts) {
  for (const uint64_t seed : {2, 3}) {
    Trial trial = trial_with(seed, {.parameter = 3, .value = kNaN});
    trial.spoiled.element = trial.parameters[3].elements - 1;
    EXPECT_EQ(train(trial).skipped_steps, 1);
  }
}

TEST(EngineSkip, SquaresThatOverflowSkipTheStep) {
  for (const size_t p : {1, 2}) {  // fp32, bf16
    Trial trial = trial_with(4, {.parameter = p, .value = 2e19f});
    trial.accumulation = 1;
    trial.spoiled.micro_batch = 0;
    EXPECT_EQ(train(trial).skipped_steps, 1);
    trial.spoiled.value = 1e18f;
    EXPECT_EQ(train(trial).skipped_steps, 0);
  }
}

// Two finite micro-batches whose sum is finite in fp32 and not in fp16.
TEST(EngineSkip, AnOverflowOfTheCallersSumSkipsTheStep) {
  Trial trial = trial_with(2, {.parameter = 9, .value = 65504});  // fp16 weight, fp32 sum
  trial.accumulation = 2;
  trial.spoiled.micro_batch = 1;
  EXPECT_EQ(train(trial).skipped_steps, 0) << "an fp32 sum of fp16 gradients does not overflow";
  trial.offload_gradients = false;  // summed by the caller in fp16
  trial.loss_scale = 8192;
  const Outcome expected = PlainTrainer(trial).run();
  EXPECT_GT(expected.skipped_steps, 0);
  EXPECT_TRUE(testing::same_outcome(expected, train(trial)));
}

// The state before the bad step is the state after it: weights, masters, states, step counts.
TEST(EngineSkip, NothingChanges) {
  Trial trial = trial_with(6, {.parameter = 4, .element = 7, .value = kNaN});
  trial.steps = kBadStep;
  Outcome before = train(trial);
  trial.steps = kBadStep + 1;
  Outcome after = train(trial);
  EXPECT_EQ(after.skipped_steps, 1);
  after.skipped_steps = 0;
  after.norms.pop_back();
  after.clip_factors.pop_back();
  EXPECT_TRUE(testing::same_outcome(before, after));
}

TEST(EngineSkip, WithoutSkippingBadValuesSpread) {
  Trial trial = trial_with(8, {.parameter = 1, .element = 5, .value = kNaN});
  trial.skips_nonfinite = false;
  trial.steps = kBadStep + 1;
  trial.clip = Clip::kOff;
  const auto device = delayed_device(8);
  OverlappedTrainer trainer(trial, device, device, device->make_stream());
  EXPECT_EQ(trainer.run().skipped_steps, 0);
  const auto* const weight = static_cast<const float*>(trainer.weight(1));
  EXPECT_TRUE(std::isnan(weight[5]));
  EXPECT_FALSE(std::isnan(weight[6]));
}

class EngineScalars : public ::testing::Test {
 protected:
  // One step with these values in device memory, written by the compute stream just before.
  bool step(float loss_scale, float found_inf) {
    scalars_ = {kNaN, kNaN};
    trainer_.run_micro_batch(0, 0);
    device_->submit(stream_, [this, loss_scale, found_inf] { scalars_ = {loss_scale, found_inf}; });
    StepRequest request = trainer_.request_of(0);
    request.loss_scale = &scalars_[0];
    request.found_inf = &scalars_[1];
    const bool is_taken = trainer_.engine().begin_step(request, stream_);
    trainer_.engine().finish_step(stream_);
    return is_taken;
  }

  Trial trial_ = trial_with(4, {});
  std::array<float, 2> scalars_ = {};
  std::shared_ptr<SimulatedDevice> device_ = delayed_device(4);
  ComputeStream stream_ = device_->make_stream();
  OverlappedTrainer trainer_{trial_, device_, device_, stream_};
};

TEST_F(EngineScalars, FoundInfSkipsTheStep) {
  EXPECT_FALSE(step(1, 1));
  EXPECT_EQ(trainer_.engine().view(1).step, 0);
  EXPECT_EQ(trainer_.engine().stats().skipped_steps, 1);
  EXPECT_TRUE(step(1, 0));
  EXPECT_EQ(trainer_.engine().view(1).step, 1);
}

TEST_F(EngineScalars, TheLossScaleDividesTheNorm) {
  EXPECT_TRUE(step(1, 0));
  const double norm = trainer_.engine().stats().gradient_norm;
  EXPECT_GT(norm, 0);
  Trial other = trial_with(4, {});
  OverlappedTrainer second(other, device_, device_, stream_);
  second.run_micro_batch(0, 0);
  const float scale = 4;
  StepRequest request = second.request_of(0);
  request.loss_scale = &scale;
  request.scalars_memory = Memory::kHost;
  EXPECT_TRUE(second.engine().begin_step(request, stream_));
  second.engine().finish_step(stream_);
  EXPECT_EQ(second.engine().stats().gradient_norm, norm / 4);
  EXPECT_EQ(second.engine().gradient_scale(), 0.25);
}

}  // namespace
}  // namespace outboard
