// Steps whose numbers lie on the device: the bits of ordinary ones, read when they run, and nothing
// that a CUDA graph could not capture.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "quant/rounding.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::WatchedDevice;

constexpr size_t kElements = 1300;
constexpr size_t kParameters = 3;

std::vector<double> hyper_of(const RuleInfo& rule) {
  std::vector<double> hyper;
  for (const HyperParameter& parameter : rule.hyper_parameters) {
    hyper.push_back(parameter.key == "momentum" ? 0.9 : parameter.default_value);
  }
  return hyper;
}

/// Resident bfloat16 parameters without masters, so that each step's random numbers matter.
class Model {
 public:
  Model(RuleId rule, const std::string& format, std::shared_ptr<Device> device)
      : hyper(2, hyper_of(rule_info(rule))),
        weights_(kParameters, std::vector<uint16_t>(kElements)),
        gradients_(weights_),
        engine({.skip_nonfinite = false}, std::move(device)) {
    hyper[1][0] *= 3;
    const StateFormats formats = state_formats_named(format);
    std::vector<ParameterSpec> specs;
    for (size_t p = 0; p < kParameters; ++p) {
      for (size_t i = 0; i < kElements; ++i) weights_[p][i] = value(p, i, 0);
      ParameterSpec spec{.name = "weight " + std::to_string(p),
                         .weight = weights_[p].data(),
                         .type = DType::kBF16,
                         .elements = kElements,
                         .placement = Placement::kResident,
                         .rule = rule,
                         .master_format = MasterFormat::kStochastic,
                         .rows = 1};
      const auto states = rule_info(rule).states;
      for (size_t s = 0; s < states.size(); ++s) {
        const bool is_vector = states[s].shape != StateShape::kElements;
        const StateFormat whole =
            states[s].is_signed ? formats.signed_state : formats.unsigned_state;
        spec.formats[s] = is_vector ? StateFormat{} : whole;
      }
      spec.hyper = hyper[0];
      specs.push_back(spec);
    }
    engine.add_parameters(specs, nullptr);
  }

  /// Gives gradients to all parameters but `without`.
  void backward(int64_t step, size_t without = kParameters) {
    for (size_t p = 0; p < kParameters; ++p) {
      if (p == without) continue;
      for (size_t i = 0; i < kElements; ++i) gradients_[p][i] = value(p, i, step);
      engine.gradient_ready(p, {gradients_[p].data(), {}}, nullptr);
    }
  }
  void step() {
    engine.begin_step({.hyper = hyper, .group_of = group_of}, nullptr);
    engine.finish_step(nullptr);
  }
  [[nodiscard]] DeviceNumbers numbers() {
    return {.hyper = {hyper[0].data(), hyper[1].data()},
            .steps = {&counts[0], &counts[1], &counts[2]}};
  }
  void enqueue() {
    engine.enqueue_step({.hyper = hyper, .group_of = group_of}, numbers(), nullptr);
  }
  [[nodiscard]] const std::vector<std::vector<uint16_t>>& weights() const { return weights_; }

  std::vector<std::vector<double>> hyper;
  std::vector<uint32_t> group_of = {0, 1, 0};
  std::vector<int64_t> counts = {0, 0, 0};

 private:
  static uint16_t value(size_t p, size_t i, int64_t step) {
    const auto number = static_cast<float>((i * 7 + p * 5 + static_cast<size_t>(step) * 3) % 23);
    return quant::bf16_nearest((number - 11.0f) / 16);
  }

  std::vector<std::vector<uint16_t>> weights_;
  std::vector<std::vector<uint16_t>> gradients_;

 public:
  Engine engine;
};

class EngineCapturable : public ::testing::TestWithParam<RuleId> {};

TEST_P(EngineCapturable, HasTheBitsOfOrdinarySteps) {
  for (const char* format : {"fp32", "8bit", "4bit"}) {
    Model usual(GetParam(), format, make_simulated_device({}));
    Model capturable(GetParam(), format, make_simulated_device({}));
    for (int64_t step = 1; step <= 4; ++step) {
      const size_t without = step == 2 ? 2 : kParameters;
      usual.backward(step, without);
      capturable.backward(step, without);
      usual.hyper[1][0] *= 0.5;
      capturable.hyper[1][0] *= 0.5;
      usual.step();
      capturable.enqueue();
    }
    EXPECT_EQ(capturable.weights(), usual.weights()) << format;
    EXPECT_THAT(capturable.counts, ElementsAre(4, 4, 3));
    EXPECT_EQ(capturable.engine.stats().steps, 4);
  }
}

constexpr RuleId kEveryRule[] = {
#define OUTBOARD_RULE(type, stem) RuleId::k##type,
#include "outboard/rules.def"
#undef OUTBOARD_RULE
};

INSTANTIATE_TEST_SUITE_P(Rules, EngineCapturable, ::testing::ValuesIn(kEveryRule),
                         [](const auto& info) { return std::string(rule_info(info.param).name); });

TEST(EngineCapturableNumbers, AreReadWhenTheStepRuns) {
  const auto device = make_simulated_device({.seed = 3, .max_delay_microseconds = 200});
  const ComputeStream stream = device->make_stream();
  const RuleInfo& rule = rule_named("SGD");
  std::vector<double> hyper = hyper_of(rule);
  hyper[1] = 0;
  std::vector<float> weight(10, 0.0f);
  const std::vector<float> gradient(10, 1.0f);
  int64_t count = 0;
  ResidentUpdate update{.rule = rule.id, .scalars = {}};
  update.elements = weight.size();
  update.gradient = gradient.data();
  update.weight = weight.data();
  update.device_step = &count;
  update.device_hyper = hyper.data();
  for (const double rate : {0.5, 0.25}) {
    device->submit(stream, [&hyper, rate] { hyper[0] = rate; });
    device->update_resident(stream, {&update, 1});
  }
  device->record(stream)->synchronize();
  EXPECT_THAT(weight, Each(-0.75f));
  EXPECT_EQ(count, 2);
}

TEST(EngineCapturableNumbers, ACaptureTakesInNothingButTheUpdate) {
  std::multiset<Call> calls;
  const auto device = std::make_shared<WatchedDevice>(
      make_simulated_device({}), [&](Call call, const Event*) { calls.insert(call); });
  Model model(RuleId::kAdamW, "8bit", device);
  model.backward(1);
  device->captures = true;
  calls.clear();
  model.enqueue();
  EXPECT_EQ(calls, (std::multiset<Call>{Call::kUpdateResident}));
}

std::string refusal(Model& model, const StepRequest& request, const DeviceNumbers& numbers) {
  model.backward(1);
  const auto before = model.weights();
  try {
    model.engine.enqueue_step(request, numbers, nullptr);
  } catch (const Error& error) {
    EXPECT_EQ(model.weights(), before);
    EXPECT_TRUE(model.engine.is_usable());
    return error.what();
  }
  return "nothing was thrown";
}

TEST(EngineCapturableErrors, SayWhatIsWrong) {
  const auto device =
      std::make_shared<WatchedDevice>(make_simulated_device({}), [](Call, const Event*) {});
  Model model(RuleId::kAdamW, "8bit", device);
  StepRequest request{.hyper = model.hyper, .group_of = model.group_of};
  DeviceNumbers numbers = model.numbers();
  numbers.steps[1] = nullptr;
  EXPECT_THAT(refusal(model, request, numbers), HasSubstr("no step count"));
  numbers = model.numbers();
  numbers.hyper.pop_back();
  EXPECT_THAT(refusal(model, request, numbers), HasSubstr("of group 1"));
  request.max_gradient_norm = 1;
  EXPECT_THAT(refusal(model, request, model.numbers()), HasSubstr("begin_step()"));
  request.max_gradient_norm = 0;
  request.hyper[0][5] = 1;  // amsgrad
  device->captures = true;
  EXPECT_THAT(refusal(model, request, model.numbers()), HasSubstr("take a step before"));
  device->captures = false;
  EXPECT_EQ(refusal(model, request, model.numbers()), "nothing was thrown");
}

TEST(EngineCapturableErrors, ParametersOnTheHostAreRefused) {
  std::vector<float> weight(10), gradient(10);
  std::vector<double> hyper = hyper_of(rule_named("SGD"));
  int64_t count = 0;
  Engine engine({}, nullptr);
  engine.add_parameters({{.name = "bias",
                          .weight = weight.data(),
                          .memory = Memory::kHost,
                          .elements = weight.size(),
                          .rule = RuleId::kSGD,
                          .hyper = hyper}},
                        nullptr);
  engine.gradient_ready(0, {gradient.data(), {}}, nullptr);
  EXPECT_THROW(engine.enqueue_step({.hyper = {hyper}}, {{hyper.data()}, {&count}}, nullptr), Error);
  EXPECT_EQ(count, 0);
}

}  // namespace
}  // namespace outboard
