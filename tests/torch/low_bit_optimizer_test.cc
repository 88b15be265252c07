// State in low-bit formats through the libtorch face: the same bits everywhere, exact checkpoints,
// conversion, formats by name, and errors.
#include "outboard/torch/low_bit_optimizer.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "outboard/error.h"
#include "training.h"

namespace outboard {
namespace {

using torch::optim::AdamWOptions;

LowBitOptions low_bit_options(Place place, const std::string& state_format = "8bit") {
  LowBitOptions options{
      .state_format = state_format, .min_quantized_elements = 16, .threads = 2, .seed = 5};
  options.simulated_device = options_for(place).simulated_device;
  return options;
}

CPUOffloadOptions offload_options(Place place, const std::string& state_format = "8bit") {
  CPUOffloadOptions options = options_for(place);
  options.state_format = state_format;
  options.min_quantized_elements = 16;
  options.seed = 5;
  return options;
}

std::vector<std::string> formats() {
  std::vector<std::string> names;
  for (const std::string_view name : state_format_names()) names.emplace_back(name);
  return names;
}

std::vector<at::Tensor> states_of(CPUOffloadOptimizer& optimizer, const Training& training) {
  std::vector<at::Tensor> states;
  for (const at::Tensor& parameter : training.parameters) {
    for (const auto& [key, value] : optimizer.state_of(parameter)) states.push_back(value.clone());
  }
  return states;
}

Training with_weights_of(const Training& other, Place place) {
  Training training(place, other.parameters[0].scalar_type());
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < training.parameters.size(); ++i) {
    at::Tensor weight = training.parameters[i];
    weight.copy_(other.parameters[i]);
  }
  return training;
}

class LowBitOptimizerTest : public OnEveryPlace {
 protected:
  void TearDown() override { std::filesystem::remove(path()); }
  static std::string path() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string("low_bit.") + test->name() + ".pt";
    std::ranges::replace(name, '/', '.');
    return (std::filesystem::path(testing::TempDir()) / name).string();
  }
};
OUTBOARD_ON_EVERY_PLACE(LowBitOptimizerTest);

TEST_P(LowBitOptimizerTest, HasTheBitsOfAnUpdateInPlaceAndOfAnOffloadedOne) {
  for (const std::string& format : formats()) {
    const Training reference(Place::kInPlace, at::kBFloat16);
    LowBitOptimizer in_place(reference.parameters, AdamWOptions(1e-2),
                             low_bit_options(Place::kInPlace, format));
    reference.run(in_place, 0, 4);
    const Training resident(GetParam(), at::kBFloat16);
    LowBitOptimizer low_bit(resident.parameters, AdamWOptions(1e-2),
                            low_bit_options(GetParam(), format));
    resident.run(low_bit, 0, 4);
    const Training offloaded(GetParam(), at::kBFloat16);
    CPUOffloadOptimizer offload(offloaded.parameters, AdamWOptions(1e-2),
                                offload_options(GetParam(), format));
    offloaded.run(offload, 0, 4);
    offload.synchronize();
    expect_equal(resident.parameters, reference.parameters, "resident " + format);
    expect_equal(offloaded.parameters, reference.parameters, "offloaded " + format);
  }
}

TEST_P(LowBitOptimizerTest, KeepsNothingOnTheHostForADevice) {
  const Training training(GetParam());
  LowBitOptimizer optimizer(training.parameters, AdamWOptions(1e-2), low_bit_options(GetParam()));
  const MemoryStats memory = optimizer.stats().memory;
  const bool is_in_place = GetParam() == Place::kInPlace;
  EXPECT_EQ(memory.host_weights + memory.host_gradients, 0U);
  EXPECT_EQ(memory.host_state > 0, is_in_place);
  EXPECT_EQ(memory.device_state > 0, !is_in_place);
  EXPECT_EQ(optimizer.placement_of(training.parameters[0]), is_in_place ? "cpu" : "resident");
}

TEST_P(LowBitOptimizerTest, CheckpointsResumeWithTheSameBits) {
  for (const std::string& format : formats()) {
    const Training whole(GetParam(), at::kBFloat16);
    LowBitOptimizer optimizer(whole.parameters, AdamWOptions(1e-2),
                              low_bit_options(GetParam(), format));
    whole.run(optimizer, 0, 3);
    optimizer.save_checkpoint(path());
    const Training second = with_weights_of(whole, GetParam());
    CPUOffloadOptimizer resumed(second.parameters, AdamWOptions(1e-2),
                                offload_options(GetParam(), format));
    resumed.load_checkpoint(path());
    whole.run(optimizer, 3, 6);
    second.run(resumed, 3, 6);
    resumed.synchronize();
    expect_equal(second.parameters, whole.parameters, format);
    expect_equal(states_of(resumed, second), states_of(optimizer, whole), format);
  }
}

TEST_P(LowBitOptimizerTest, CheckpointsLoadIntoOtherFormats) {
  const Training training(GetParam());
  LowBitOptimizer low(training.parameters, AdamWOptions(1e-2), low_bit_options(GetParam()));
  training.run(low, 0, 3);
  for (const CheckpointState kind : {CheckpointState::kExact, CheckpointState::kDecoded}) {
    low.save_checkpoint(path(), kind);
    const Training other = with_weights_of(training, GetParam());
    CPUOffloadOptimizer wide(other.parameters, AdamWOptions(1e-2),
                             offload_options(GetParam(), "fp32"));
    wide.load_checkpoint(path());
    expect_equal(states_of(wide, other), states_of(low, training), "8bit to fp32");
    wide.save_checkpoint(path(), kind);
    low.load_checkpoint(path());
    expect_close(states_of(low, training), states_of(wide, other));  // scales: to the last place
  }
}

TEST_P(LowBitOptimizerTest, ConvertsInPlace) {
  const Training training(GetParam());
  LowBitOptimizer optimizer(training.parameters, AdamWOptions(1e-2), low_bit_options(GetParam()));
  training.run(optimizer, 0, 3);
  const auto before = states_of(optimizer, training);
  const at::Tensor& first = training.parameters[0];
  EXPECT_EQ(optimizer.state_format_of(first), "sym8/128, root8/128");
  EXPECT_EQ(optimizer.state_format_of(training.parameters[2]), "fp32");
  optimizer.convert_state("fp32");
  EXPECT_EQ(optimizer.state_format_of(first), "fp32");
  expect_equal(states_of(optimizer, training), before, "fp32");
  optimizer.convert_state("sym8/root8", 64, "param_groups[[]0][[]0]");
  EXPECT_EQ(optimizer.state_format_of(first), "sym8/64, root8/64");
  EXPECT_EQ(optimizer.state_format_of(training.parameters[1]), "fp32");
  training.run(optimizer, 3, 5);
  EXPECT_THROW(optimizer.convert_state("8bit", 100), Error);
  EXPECT_THROW(optimizer.convert_state("8bit", 0, "nothing*"), Error);
}

TEST_P(LowBitOptimizerTest, FormatsFollowNames) {
  const Training training(GetParam());
  CPUOffloadOptions options = offload_options(GetParam());
  options.names.insert("embed.weight", training.parameters[0]);
  options.names.insert("head.weight", training.parameters[1]);
  options.state_formats = {{"embed.*", "fp32"}, {"*.weight", "8bit", 64}};
  CPUOffloadOptimizer optimizer(training.parameters, AdamWOptions(1e-2), options);
  EXPECT_EQ(optimizer.state_format_of(training.parameters[0]), "fp32");
  EXPECT_EQ(optimizer.state_format_of(training.parameters[1]), "sym8/64, root8/64");
  training.run(optimizer, 0, 2);
  options.state_formats = {{"head.bias", "fp32"}};
  EXPECT_THROW(CPUOffloadOptimizer(training.parameters, AdamWOptions(1e-2), options), Error);
}

TEST_P(LowBitOptimizerTest, CapturableStepsHaveTheSameBits) {
  LowBitOptions options = low_bit_options(GetParam());
  options.capturable = true;
  const Training training(GetParam(), at::kBFloat16);
  if (GetParam() == Place::kInPlace) {
    EXPECT_THROW(LowBitOptimizer(training.parameters, AdamWOptions(1e-2), options), Error);
    return;
  }
  LowBitOptimizer optimizer(training.parameters, AdamWOptions(1e-2), options);
  const Training reference(GetParam(), at::kBFloat16);
  LowBitOptimizer usual(reference.parameters, AdamWOptions(1e-2), low_bit_options(GetParam()));
  for (int64_t step = 0; step < 3; ++step) {
    training.run(optimizer, step, step + 1);
    reference.run(usual, step, step + 1);
    for (CPUOffloadOptimizer* each : {static_cast<CPUOffloadOptimizer*>(&optimizer),
                                      static_cast<CPUOffloadOptimizer*>(&usual)}) {
      each->param_groups()[0].options().set_lr(1e-2 / static_cast<double>(step + 2));
    }
    optimizer.update_hyperparameters();
  }
  expect_equal(training.parameters, reference.parameters, "weights");
  expect_equal(states_of(optimizer, training), states_of(usual, reference), "states");
  optimizer.save_checkpoint(path());
  usual.load_checkpoint(path());
  training.run(optimizer, 3, 5);
  reference.run(usual, 3, 5);
  usual.save_checkpoint(path());
  optimizer.load_checkpoint(path());
  training.run(optimizer, 5, 6);
  reference.run(usual, 5, 6);
  expect_equal(training.parameters, reference.parameters, "weights after loading");
  EXPECT_EQ(optimizer.state_of(training.parameters[0]).at("step").item<float>(), 6);
}

TEST(LowBitOptimizerErrors, CapturableStepsRefuseWhatTheHostDecides) {
  const Training training(Place::kSimulated);
  LowBitOptions options = low_bit_options(Place::kSimulated);
  EXPECT_THROW(
      LowBitOptimizer(training.parameters, AdamWOptions(), options).update_hyperparameters(),
      Error);
  options.capturable = true;
  EXPECT_THROW(LowBitOptimizer(training.parameters, AdamWOptions(), options).clip_grad_norm_(1),
               Error);
  options.max_gradient_norm = 1;
  EXPECT_THROW(LowBitOptimizer(training.parameters, AdamWOptions(), options), Error);
  options.max_gradient_norm = 0;
  options.skip_nonfinite = true;
  EXPECT_THROW(LowBitOptimizer(training.parameters, AdamWOptions(), options), Error);
}

TEST(LowBitOptimizerErrors, NameWhatIsWrong) {
  const Training training(Place::kInPlace);
  const auto message = [&](const LowBitOptions& options) -> std::string {
    try {
      LowBitOptimizer(training.parameters, AdamWOptions(), options);
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_THAT(message({.state_format = "9bit"}), testing::HasSubstr("9bit"));
  EXPECT_THAT(message({.block_size = 100}), testing::HasSubstr("100"));
  EXPECT_THAT(message({.block_size = -1}), testing::HasSubstr("-1"));
  EXPECT_THAT(message({.min_quantized_elements = -7}), testing::HasSubstr("-7"));
}

}  // namespace
}  // namespace outboard
