// Engine::set_placements: moved parameters train with the bits of a plain loop, memory is where the
// books say, and what cannot move is refused with nothing changed.
#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <string>
#include <tuple>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/equality.h"
#include "tests/offload/support/small_engine.h"
#include "tests/offload/support/trial.h"

namespace outboard {
namespace {

using testing::after;
using testing::Call;
using testing::Clip;
using testing::kElements;
using testing::kHost;
using testing::kStreamed;
using testing::SmallEngine;
using testing::Trial;
using testing::Values;

constexpr uint64_t kSeeds = 3;
constexpr const char* kFormats[] = {"fp32", "bf16", "8bit", "4bit", "8bit/4bit"};

Trial trial_of(Schedule schedule, Clip clip, int accumulation, uint64_t seed) {
  Trial trial{.seed = seed,
              .accumulation = accumulation,
              .clip = clip,
              .steps = 8,
              .schedule = schedule,
              .moves = true,
              .parameters = testing::parameters_of_every_kind(seed)};
  const uint64_t draw = splitmix64(seed ^ 77);
  for (auto& parameter : trial.parameters) {
    if ((draw >> 8 & 1) == 0) continue;
    parameter.formats = state_formats_named(kFormats[draw % std::size(kFormats)]);
  }
  trial.parameters = testing::streamed(trial.parameters, /*all=*/false);
  trial.rule = static_cast<RuleId>((draw >> 24) % kRuleCount);
  trial.offload_gradients = (draw >> 9 & 1) != 0;
  trial.skips_nonfinite = (draw >> 10 & 1) != 0;
  trial.sends_every_backward = (draw >> 12 & 1) != 0;
  trial.has_unused = (draw >> 13 & 1) == 0;
  trial.loss_scale = (draw >> 15 & 3) == 3 ? 512.0f : 1.0f;
  trial.threads = 1 + static_cast<int>(draw >> 17 & 1);
  trial.poisons_in_flight = (draw >> 18 & 7) == 0;
  return trial;
}

using Combination = std::tuple<Schedule, Clip, int>;

class EngineMoves : public ::testing::TestWithParam<Combination> {};

TEST_P(EngineMoves, EqualThePlainLoop) {
  const auto& [schedule, clip, accumulation] = GetParam();
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Trial trial = trial_of(schedule, clip, accumulation, seed * 613 + 5);
    SCOPED_TRACE("seed " + std::to_string(trial.seed) + ", " +
                 std::string(rule_info(trial.rule).name) +
                 (trial.offload_gradients ? ", offloads" : ", keeps") +
                 (trial.skips_nonfinite ? ", skips" : ", does not skip"));
    testing::expect_equals_plain_loop(trial, 60);
  }
}

std::string name_of(const ::testing::TestParamInfo<Combination>& info) {
  const auto& [schedule, clip, accumulation] = info.param;
  constexpr const char* kSchedules[] = {"AtStep", "NextForward", "InBackward"};
  constexpr const char* kClips[] = {"Off", "Never", "Sometimes", "Always"};
  return std::string(kSchedules[static_cast<int>(schedule)]) + "Clip" +
         kClips[static_cast<int>(clip)] + std::to_string(accumulation);
}

INSTANTIATE_TEST_SUITE_P(
    Matrix, EngineMoves,
    ::testing::Combine(::testing::Values(Schedule::kAtStep, Schedule::kNextForward,
                                         Schedule::kInBackward),
                       ::testing::Values(Clip::kOff, Clip::kNever, Clip::kSometimes, Clip::kAlways),
                       ::testing::Values(1, 3)),
    name_of);

// A test of the tests: parameters do change their placement, and updates begin early between.
TEST(EngineMovesTrial, MovesAndUpdatesInBackward) {
  Trial trial = trial_of(Schedule::kInBackward, Clip::kNever, 1, 3);
  trial.rule = rule_named("AdamW").id;
  trial.loss_scale = 1;
  trial.skips_nonfinite = true;
  trial.has_unused = false;
  trial.poisons_in_flight = false;
  int moves = 0;
  for (int step = 1; step < trial.steps; ++step) {
    for (size_t p = 0; p < trial.parameters.size(); ++p) {
      moves += trial.placement(step, p) != trial.placement(step - 1, p) ? 1 : 0;
    }
  }
  EXPECT_GT(moves, 10);
  EXPECT_GT(testing::expect_equals_plain_loop(trial, 30).early_updates, 0);
}

class EngineMove : public SmallEngine {
 protected:
  void move(size_t parameter, Placement placement) {
    engine_->set_placements({{{parameter, placement}}}, stream_);
  }
  void expect_move_refused(size_t parameter, Placement placement, ErrorKind kind,
                           const std::string& part) {
    try {
      move(parameter, placement);
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
  [[nodiscard]] Placement placement(size_t parameter) const {
    return engine_->view(parameter).spec->placement;
  }
};

constexpr size_t kArray = 768 * sizeof(float);  // padded to whole tiles

TEST_F(EngineMove, MemoryIsWhereTheBooksSay) {
  make(tentative(), {kHost, kHost});
  train();
  engine_->synchronize();
  const MemoryStats before = engine_->memory();
  EXPECT_EQ(before.host_weights, 2 * kArray);
  EXPECT_EQ(before.host_gradients, 2 * kArray);
  EXPECT_EQ(before.host_spare, 0u);
  const void* const state = engine_->view(0).states[0].codes;

  move(0, kStreamed);
  const MemoryStats streamed = engine_->memory();
  EXPECT_EQ(engine_->view(0).host_weight, nullptr);
  EXPECT_EQ(engine_->view(0).states[0].codes, state);
  EXPECT_EQ(streamed.host_weights, kArray);
  EXPECT_EQ(streamed.host_gradients, kArray);
  EXPECT_EQ(streamed.host_spare, 2 * kArray);
  EXPECT_GT(streamed.host_pinned, before.host_pinned);
  EXPECT_GT(streamed.device_workspace, before.device_workspace);  // the ring

  train();  // this one shows how many gradients a step has
  train();  // a guess: its second copy takes the memory of the image
  engine_->synchronize();
  EXPECT_EQ(engine_->stats().early_updates, 1);
  EXPECT_EQ(engine_->memory().host_state, before.host_state + kArray);
  EXPECT_EQ(engine_->memory().host_spare, kArray);

  move(0, kHost);
  const MemoryStats after_all = engine_->memory();
  EXPECT_EQ(after_all.host_weights, before.host_weights);
  EXPECT_EQ(after_all.host_gradients, before.host_gradients);
  EXPECT_EQ(after_all.host_state, before.host_state);
  EXPECT_EQ(after_all.host_spare, 0u);
  EXPECT_EQ(after_all.device_workspace, before.device_workspace);
  train();
  expect_weights(after(4));
}

TEST_F(EngineMove, BackAndForthTakesNoMoreMemory) {
  make(tentative(), {kStreamed, kHost});
  size_t held = 0;
  for (int n = 0; n < 12; ++n) {
    move(0, n % 4 < 2 ? kHost : kStreamed);
    move(1, n % 4 < 2 ? kStreamed : kHost);
    train();
    train();
    engine_->synchronize();
    const MemoryStats memory = engine_->memory();
    const size_t all = memory.host_weights + memory.host_gradients + memory.host_state +
                       memory.host_masters + memory.host_spare;
    if (n == 3) held = all;
    if (n > 3) {
      EXPECT_EQ(all, held);
    }
  }
  expect_weights(after(24));
}

// What is said of a step before a move holds for what has not moved.
TEST_F(EngineMove, AMoveAfterTheForwardIsNoneTooLate) {
  make(tentative(), {kStreamed, kHost, kStreamed});
  train();
  train();
  forward();
  engine_->set_placements({{{0, kHost}, {1, kStreamed}}}, stream_);
  backward();
  EXPECT_TRUE(step(request_));
  EXPECT_EQ(engine_->stats().early_updates, 2 + 1);  // of the one that stayed
  expect_weights(after(3));
}

TEST_F(EngineMove, TheLastWordCountsAndWhereItIsNothingHappens) {
  make(tentative(), {kHost});
  train();
  engine_->set_placements({{{0, kStreamed}, {0, kHost}}}, stream_);
  EXPECT_EQ(placement(0), kHost);
  EXPECT_EQ(engine_->memory().host_spare, 0u);
  engine_->set_placements({{{0, kHost}, {0, kStreamed}}}, stream_);
  EXPECT_EQ(placement(0), kStreamed);
  move(0, kStreamed);
  train();
  expect_weights(after(2));
}

TEST_F(EngineMove, WhatCannotMoveIsRefused) {
  make(tentative(), {kHost, Placement::kResident});
  Values own(kElements, 1.0f), plain(kElements, 1.0f);
  engine_->add_parameters({{.name = "own", .weight = own.data(), .elements = kElements, .rule = {}},
                           {.name = "plain",
                            .weight = plain.data(),
                            .memory = Memory::kHost,
                            .elements = kElements,
                            .rule = rule_named("SGD").id,
                            .hyper = request_.hyper[0]}},
                          stream_);
  expect_move_refused(0, Placement::kResident, ErrorKind::kValue, "do not become resident");
  expect_move_refused(1, kHost, ErrorKind::kValue, "resident parameters stay");
  expect_move_refused(2, kStreamed, ErrorKind::kValue, "the caller's");
  expect_move_refused(3, kStreamed, ErrorKind::kValue, "host memory");
  expect_move_refused(4, kStreamed, ErrorKind::kValue, "parameter 4 of 4");
  // One that cannot holds up those that could.
  EXPECT_THROW(engine_->set_placements({{{0, kStreamed}, {1, kHost}}}, stream_), Error);
  EXPECT_EQ(placement(0), kHost);
}

TEST_F(EngineMove, NotInTheMiddleOfAnAccumulationOrAStep) {
  make(for_good(), {kHost});
  train();
  send(0);
  send(0);
  expect_move_refused(0, kStreamed, ErrorKind::kState, "gradient");
  engine_->forget_gradients();
  settle();
  EXPECT_TRUE(engine_->begin_step(request_, stream_));
  expect_move_refused(0, kStreamed, ErrorKind::kState, "gradient");
  engine_->finish_step(stream_);
}

TEST_F(EngineMove, WithoutMemoryNothingMoves) {
  fault_.emplace(Call::kAllocate);
  make(tentative(), {kHost});
  train();
  engine_->synchronize();
  fault_->arm(0);
  EXPECT_THROW(move(0, kStreamed), Error);  // the ring
  fault_->disarm();
  EXPECT_EQ(placement(0), kHost);
  EXPECT_EQ(engine_->memory().host_spare, 0u);
  train();
  move(0, kStreamed);
  train();
  expect_weights(after(3));
}

TEST_F(EngineMove, AFailedCopyLeavesTheParameterStreamed) {
  fault_.emplace(Call::kCopyToHost);
  make(tentative(), {kStreamed});
  train();
  engine_->synchronize();
  fault_->arm(0);
  EXPECT_THROW(move(0, kHost), Error);
  fault_->disarm();
  EXPECT_EQ(placement(0), kStreamed);
  train();
  train();
  move(0, kHost);
  train();
  expect_weights(after(4));
}

}  // namespace
}  // namespace outboard
