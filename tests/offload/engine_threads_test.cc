// Several threads that deliver gradients, several engines at once, and norms that depend on neither
// chunks nor intake.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "outboard/engine.h"
#include "tests/offload/support/overlapped_trainer.h"
#include "tests/offload/support/plain_trainer.h"
#include "tests/offload/support/trial.h"

namespace outboard {
namespace {

using testing::OverlappedTrainer;
using testing::PlainTrainer;
using testing::Trial;

// Autograd delivers gradients of one backward from several threads.
TEST(EngineThreads, GradientsComeFromManyThreads) {
  for (const bool offloads : {false, true}) {
    Trial trial{.seed = 21,
                .offload_gradients = offloads,
                .accumulation = offloads ? 2 : 1,
                .clip = testing::Clip::kSometimes,
                .has_unused = false,
                .parameters = testing::parameters_of_every_kind(21)};
    const auto device =
        make_simulated_device({.seed = 21, .max_delay_microseconds = 50, .poison_targets = true});
    OverlappedTrainer trainer(trial, device, device, device->make_stream());
    for (int step = 0; step < trial.steps; ++step) {
      for (int micro_batch = 0; micro_batch < trial.accumulation; ++micro_batch) {
        std::vector<std::jthread> threads;
        for (size_t thread = 0; thread < 3; ++thread) {
          threads.emplace_back([&, thread] {
            for (size_t p = thread; p < trial.parameters.size(); p += 3) {
              trainer.send_gradient(step, micro_batch, p);
            }
          });
        }
      }
      EXPECT_TRUE(trainer.begin(step));
      trainer.engine().finish_step(trainer.stream());
    }
    EXPECT_TRUE(testing::same_outcome(PlainTrainer(trial).run(), trainer.outcome()));
  }
}

TEST(EngineThreads, TwoEnginesTrainAtOnce) {
  const auto device =
      make_simulated_device({.seed = 4, .max_delay_microseconds = 40, .poison_targets = true});
  std::vector<std::jthread> threads;
  for (const uint64_t seed : {31, 32}) {
    threads.emplace_back([seed, device] {
      const Trial trial{.seed = seed,
                        .rule = seed % 2 == 0 ? RuleId::kAdamW : RuleId::kLion,
                        .offload_gradients = true,
                        .accumulation = 2,
                        .parameters = testing::parameters_of_every_kind(seed)};
      OverlappedTrainer trainer(trial, device, device, device->make_stream());
      EXPECT_TRUE(testing::same_outcome(PlainTrainer(trial).run(), trainer.run()));
    });
  }
}

// The norm's bits depend on the gradients alone.
TEST(EngineNorm, DoesNotDependOnChunksOrIntake) {
  constexpr size_t kLong = 5 * kNormSegmentElements + 123;
  std::vector<float> weight(kLong, 1), gradient(kLong);
  for (size_t i = 0; i < kLong; ++i) {
    gradient[i] = static_cast<float>(splitmix64(i) >> 40) * 0x1p-20f;
  }
  const double expected =
      std::sqrt(testing::plain_sum_of_squares(gradient.data(), DType::kF32, kLong));
  for (const size_t chunk : {size_t{1}, size_t{2} * kNormSegmentElements, size_t{1} << 24}) {
    for (const bool offloads : {false, true}) {
      for (const Placement placement : {Placement::kHost, Placement::kResident}) {
        Engine engine({.offload_gradients = offloads, .chunk_elements = chunk},
                      make_simulated_device({}));
        engine.add_parameters({{.name = "weight",
                                .weight = weight.data(),
                                .elements = kLong,
                                .placement = placement,
                                .rule = {},
                                .hyper = {}}},
                              nullptr);
        engine.gradient_ready(0, {gradient.data(), nullptr}, nullptr);
        EXPECT_EQ(engine.gradient_norm({.hyper = {{}}}, nullptr), expected);
      }
    }
  }
}

}  // namespace
}  // namespace outboard
