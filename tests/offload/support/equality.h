// Runs a trial twice, plainly and through the engine on a device that delays and poisons, and
// expects the same bits. What makes it fail is a missing wait.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_EQUALITY_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_EQUALITY_H_

#include <gtest/gtest.h>

#include <cstdint>

#include "outboard/device.h"
#include "outboard/stats.h"
#include "tests/offload/support/outcome.h"
#include "tests/offload/support/overlapped_trainer.h"
#include "tests/offload/support/plain_trainer.h"
#include "tests/offload/support/trial.h"

namespace outboard::testing {

/// The first of `count` seeds of a sweep: 1, and others with each repetition under --gtest_shuffle.
inline uint64_t first_seed(uint64_t count) {
  return 1 + count * static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed());
}

/// The engine's counters afterwards.
inline StepStats expect_equals_plain_loop(const Trial& trial, int max_delay_microseconds) {
  const Outcome expected = PlainTrainer(trial).run();
  const auto device = make_simulated_device({.seed = trial.seed,
                                             .max_delay_microseconds = max_delay_microseconds,
                                             .poison_targets = true});
  OverlappedTrainer trainer(trial, device, device, device->make_stream());
  const Outcome actual = trainer.run();
  EXPECT_TRUE(same_outcome(expected, actual));
  EXPECT_FALSE(trainer.weights_changed_in_backward());
  return trainer.engine().stats();
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_EQUALITY_H_
