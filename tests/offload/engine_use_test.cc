// Wrong use of the engine: clear errors of the right kind, thrown before anything changed.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "outboard/device.h"
#include "outboard/engine.h"
#include "outboard/error.h"

namespace outboard {
namespace {

constexpr size_t kElements = 1000;

// Plain SGD with learning rate 1 on one fp32 parameter of the fake device; everything on the
// calling thread.
class EngineUse : public ::testing::Test {
 protected:
  EngineUse() { engine_.add_parameters({spec(weight_.data())}, nullptr); }

  static std::vector<double> hyper(double learning_rate = 1) {
    std::vector<double> values;
    for (const HyperParameter& parameter : rule_named("SGD").hyper_parameters) {
      values.push_back(parameter.key == "lr" ? learning_rate : parameter.default_value);
    }
    return values;
  }
  static ParameterSpec spec(float* weight) {
    return {.name = "layer.weight",
            .weight = weight,
            .elements = kElements,
            .rule = rule_named("SGD").id,
            .hyper = hyper()};
  }
  static StepRequest request(double learning_rate = 1) { return {.hyper = {hyper(learning_rate)}}; }
  void send() { engine_.gradient_ready(0, {gradient_.data(), nullptr}, nullptr); }
  // A whole step with gradient 1 still works: weights go from `before` to `before - 1`.
  void expect_step_works(float before) {
    send();
    EXPECT_TRUE(engine_.begin_step(request(), nullptr));
    engine_.finish_step(nullptr);
    engine_.synchronize();
    EXPECT_EQ(weight_, std::vector<float>(kElements, before - 1));
    EXPECT_TRUE(engine_.is_usable());
  }
  static void expect_error(ErrorKind kind, const std::string& text,
                           const std::function<void()>& call) {
    try {
      call();
      ADD_FAILURE() << "nothing was thrown; expected: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).front(), '[') << error.what();
    }
  }

  std::vector<float> weight_ = std::vector<float>(kElements, 10);
  std::vector<float> gradient_ = std::vector<float>(kElements, 1);
  std::shared_ptr<SimulatedDevice> device_ = make_simulated_device({.poison_targets = true});
  Engine engine_{{}, device_};
};

TEST_F(EngineUse, FinishWithoutBegin) {
  expect_error(ErrorKind::kState, "without begin_step", [&] { engine_.finish_step(nullptr); });
  expect_step_works(10);
}

TEST_F(EngineUse, BeginTwice) {
  send();
  EXPECT_TRUE(engine_.begin_step(request(), nullptr));
  expect_error(ErrorKind::kState, "called twice", [&] { engine_.begin_step(request(), nullptr); });
  engine_.finish_step(nullptr);
  expect_step_works(9);
}

TEST_F(EngineUse, AGradientDuringAStep) {
  send();
  EXPECT_TRUE(engine_.begin_step(request(), nullptr));
  expect_error(ErrorKind::kState, "layer.weight arrived between", [&] { send(); });
  expect_error(ErrorKind::kState, "gradient_norm was called between",
               [&] { engine_.gradient_norm(request(), nullptr); });
  engine_.finish_step(nullptr);
  expect_step_works(9);
}

TEST_F(EngineUse, AHyperParameterOutOfRange) {
  for (const double bad : {-0.5, std::numeric_limits<double>::quiet_NaN()}) {
    send();
    expect_error(ErrorKind::kValue, "lr", [&] { engine_.begin_step(request(bad), nullptr); });
    EXPECT_TRUE(engine_.has_gradient(0)) << "the gradient waits for a better request";
    EXPECT_EQ(engine_.view(0).step, 0);
  }
  expect_step_works(10);
}

TEST_F(EngineUse, AWrongNumberOfHyperParameters) {
  send();
  StepRequest wrong = request();
  wrong.hyper[0].pop_back();
  EXPECT_THROW(engine_.begin_step(wrong, nullptr), Error);
  wrong.hyper.clear();
  expect_error(ErrorKind::kValue, "0 groups", [&] { engine_.begin_step(wrong, nullptr); });
  expect_step_works(10);
}

TEST_F(EngineUse, GroupsThatDoNotFit) {
  send();
  StepRequest wrong = request();
  wrong.group_of = {1};
  expect_error(ErrorKind::kValue, "in group 1", [&] { engine_.begin_step(wrong, nullptr); });
  float other = 0;
  ParameterSpec tiny = spec(&other);
  tiny.elements = 1;
  engine_.add_parameters({tiny}, nullptr);
  wrong.group_of = {0};
  engine_.gradient_ready(1, {gradient_.data(), nullptr}, nullptr);
  expect_error(ErrorKind::kValue, "1 entries", [&] { engine_.begin_step(wrong, nullptr); });
  expect_step_works(10);
}

TEST_F(EngineUse, AMaximumNormThatIsNone) {
  send();
  for (const double bad : {-1.0, std::numeric_limits<double>::quiet_NaN()}) {
    StepRequest wrong = request();
    wrong.max_gradient_norm = bad;
    expect_error(ErrorKind::kValue, "max_gradient_norm",
                 [&] { engine_.begin_step(wrong, nullptr); });
  }
  expect_step_works(10);
}

TEST_F(EngineUse, AParameterOrGradientThatIsNotThere) {
  expect_error(ErrorKind::kValue, "parameter 7 of 1", [&] {
    engine_.gradient_ready(7, {gradient_.data(), nullptr}, nullptr);
  });
  expect_error(ErrorKind::kValue, "is null", [&] {
    engine_.gradient_ready(0, {nullptr, nullptr}, nullptr);
  });
  EXPECT_FALSE(engine_.has_gradient(0));
  expect_step_works(10);
}

TEST_F(EngineUse, ParametersThatCannotBe) {
  const auto add = [&](auto change) {
    ParameterSpec wrong = spec(weight_.data());
    change(wrong);
    engine_.add_parameters({spec(weight_.data()), wrong}, nullptr);
  };
  const MemoryStats before = engine_.memory();
  expect_error(ErrorKind::kValue, "lr", [&] { add([](auto& s) { s.hyper[0] = -1; }); });
  expect_error(ErrorKind::kValue, "cannot have this master",
               [&] { add([](auto& s) { s.master_format = MasterFormat::kSplit; }); });
  expect_error(ErrorKind::kValue, "split8",
               [&] { add([](auto& s) { s.master_format = MasterFormat::kSplit8; }); });
  expect_error(ErrorKind::kValue, "float16 cannot have this master", [&] {
    add([](auto& s) {
      s.type = DType::kF16;
      s.master_format = MasterFormat::kSplit8;
    });
  });
  expect_error(ErrorKind::kValue, "cannot have this master",
               [&] { add([](auto& s) { s.type = DType::kF16; }); });
  expect_error(ErrorKind::kMemory, "elements",
               [&] { add([](auto& s) { s.elements = size_t{1} << 62; }); });
  expect_error(ErrorKind::kValue, "resident", [&] {
    add([](auto& s) {
      s.memory = Memory::kHost;
      s.placement = Placement::kResident;
    });
  });
  EXPECT_EQ(engine_.parameter_count(), 1u);
  EXPECT_EQ(engine_.memory().host_weights, before.host_weights);
  expect_step_works(10);
}

TEST_F(EngineUse, OptionsThatCannotBe) {
  expect_error(ErrorKind::kValue, "slots", [&] { Engine({.slots = 0}, device_); });
  expect_error(ErrorKind::kValue, "bytes", [&] { Engine({.slot_bytes = 100}, device_); });
  expect_error(ErrorKind::kValue, "threads", [&] { Engine({.threads = -1}, device_); });
}

TEST_F(EngineUse, ADeviceWeightWithoutDevice) {
  Engine engine({}, nullptr);
  expect_error(ErrorKind::kValue, "no device",
               [&] { engine.add_parameters({spec(weight_.data())}, nullptr); });
}

TEST_F(EngineUse, WithoutDeviceWeightsAreUpdatedInPlace) {
  Engine engine({.max_gradient_norm = 0}, nullptr);
  ParameterSpec in_place = spec(weight_.data());
  in_place.memory = Memory::kHost;
  engine.add_parameters({in_place}, nullptr);
  engine.gradient_ready(0, {gradient_.data(), nullptr}, nullptr);
  EXPECT_TRUE(engine.begin_step(request(), nullptr));
  engine.finish_step(nullptr);
  EXPECT_EQ(weight_, std::vector<float>(kElements, 9));
  EXPECT_EQ(engine.memory().host_weights + engine.memory().host_gradients, 0u);
}

TEST_F(EngineUse, AStepWithoutGradients) {
  EXPECT_TRUE(engine_.begin_step(request(), nullptr));
  engine_.finish_step(nullptr);
  EXPECT_EQ(engine_.view(0).step, 0);
  expect_step_works(10);
}

TEST_F(EngineUse, ForgottenGradientsAreNotUsed) {
  send();
  engine_.forget_gradient(0);
  EXPECT_FALSE(engine_.has_gradient(0));
  EXPECT_TRUE(engine_.begin_step(request(), nullptr));
  EXPECT_TRUE(engine_.active_parameters().empty());
  engine_.finish_step(nullptr);
  EXPECT_EQ(weight_, std::vector<float>(kElements, 10));
}

TEST_F(EngineUse, ALaterGradientReplacesTheFirst) {
  const std::vector<float> first(kElements, 100);
  engine_.gradient_ready(0, {first.data(), nullptr}, nullptr);
  expect_step_works(10);
}

TEST_F(EngineUse, WeightsThatSomebodyElseChangedAreReadAgain) {
  expect_step_works(10);
  weight_.assign(kElements, 50);
  const size_t all[] = {0};
  engine_.reload_weights(all, nullptr);
  expect_step_works(50);
}

TEST_F(EngineUse, AWeightMayMove) {
  std::vector<float> moved(kElements, 10);
  engine_.set_weight(0, moved.data());
  send();
  EXPECT_TRUE(engine_.begin_step(request(), nullptr));
  engine_.finish_step(nullptr);
  engine_.synchronize();
  EXPECT_EQ(moved, std::vector<float>(kElements, 9));
  EXPECT_EQ(weight_, std::vector<float>(kElements, 10));
}

TEST_F(EngineUse, TheNormIsThatOfTheGradientsTakenSoFar) {
  EXPECT_EQ(engine_.gradient_norm(request(), nullptr), 0);
  send();
  EXPECT_EQ(engine_.gradient_norm(request(), nullptr), std::sqrt(1000.0));
  expect_step_works(10);
}

}  // namespace
}  // namespace outboard
