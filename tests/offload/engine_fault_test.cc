// Failures of the device at every call of a step: they reach the caller, nothing hangs, memory that
// copies still use is not let go, and is_usable() says whether weights and state still belong
// together.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "outboard/error.h"
#include "tests/offload/support/overlapped_trainer.h"
#include "tests/offload/support/plain_trainer.h"
#include "tests/offload/support/trial.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::Fault;
using testing::Outcome;
using testing::OverlappedTrainer;
using testing::Trial;
using testing::WatchedDevice;

enum class Intake { kKeepsGradients, kOffloadsGradients };

Trial trial_of(Intake intake) {
  return {.seed = 5,
          .offload_gradients = intake == Intake::kOffloadsGradients,
          .accumulation = intake == Intake::kOffloadsGradients ? 2 : 1,
          .steps = 1,
          .has_unused = false,
          .parameters = testing::parameters_of_every_kind(5)};
}

class EngineFault : public ::testing::TestWithParam<std::tuple<Call, Intake>> {
 protected:
  // One step under a fault at call `failing`. Everything the caller may do afterwards is done; what
  // is left to fail is the sanitizers' and the time limit's.
  bool strike(int failing) {
    const auto [call, intake] = GetParam();
    const Trial trial = trial_of(intake);
    auto fault = std::make_shared<Fault>(call);
    const auto fake =
        make_simulated_device({.seed = 77, .max_delay_microseconds = 40, .poison_targets = true});
    const auto device = std::make_shared<WatchedDevice>(
        fake, [fault](Call seen, const Event*) { fault->see(seen); });
    OverlappedTrainer trainer(trial, fake, device, fake->make_stream());
    trainer.keep_gradients();
    trainer.train(0);
    trainer.engine().synchronize();
    fault->arm(failing);
    const bool has_thrown = throws_of_one_step(trainer);
    const bool has_struck = fault->has_struck();
    EXPECT_EQ(has_thrown, has_struck);
    fault->disarm();
    after(trainer, has_struck);
    return has_struck;
  }

  // A step as a caller runs it that stops at the first exception, and then synchronises.
  static bool throws_of_one_step(OverlappedTrainer& trainer) {
    bool has_thrown = false;
    try {
      trainer.train(1);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kDevice);
      EXPECT_NE(std::string(error.what()).find("injected"), std::string::npos) << error.what();
      has_thrown = true;
    }
    try {
      trainer.engine().synchronize();
    } catch (const Error&) {
      has_thrown = true;
    }
    return has_thrown;
  }

  static void after(OverlappedTrainer& trainer, bool has_struck) {
    Engine& engine = trainer.engine();
    if (!has_struck) {
      EXPECT_TRUE(engine.is_usable());
    } else if (engine.is_usable()) {
      engine.forget_gradients();
      trainer.forget();
      EXPECT_NO_THROW(trainer.train(2));
      EXPECT_NO_THROW(engine.synchronize());
      EXPECT_TRUE(engine.is_usable());
    } else {
      EXPECT_THROW(engine.gradient_ready(1, {trainer.weight(1), nullptr}, nullptr), Error);
      EXPECT_THROW(trainer.begin(2), Error);
      trainer.forget();
    }
  }
};

TEST_P(EngineFault, AnyCallMayFail) {
  constexpr int kDense = 12;  // then ever larger strides
  for (int failing = 0; failing < 2000; failing += failing < kDense ? 1 : failing / 4) {
    SCOPED_TRACE("call " + std::to_string(failing));
    if (!strike(failing)) return;
  }
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<Call, Intake>>& info) {
  constexpr const char* kNames[] = {"CopyToHost",     "CopyToDevice", "QueueWait",  "QueueRecord",
                                    "Synchronize",    "Record",       "Wait",       "SumOfSquares",
                                    "UpdateResident", "CopyOnDevice", "WriteToHost"};
  const auto [call, intake] = info.param;
  return std::string(kNames[static_cast<int>(call)]) +
         (intake == Intake::kOffloadsGradients ? "Offloads" : "Keeps");
}

INSTANTIATE_TEST_SUITE_P(
    Device, EngineFault,
    ::testing::Combine(::testing::Values(Call::kCopyToHost, Call::kCopyToDevice, Call::kQueueWait,
                                         Call::kQueueRecord, Call::kSynchronize, Call::kRecord,
                                         Call::kWait, Call::kSumOfSquares, Call::kUpdateResident,
                                         Call::kWriteToHost),
                       ::testing::Values(Intake::kKeepsGradients, Intake::kOffloadsGradients)),
    name_of);

}  // namespace
}  // namespace outboard
