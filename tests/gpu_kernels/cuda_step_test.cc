// The fused GPU step against the CPU step: every byte of weights, masters, states, padding and
// guard zones, for every rule and format of the catalogues.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu_kernels/step.h"
#include "gpu_kernels/cuda_problem.h"
#include "gpu_kernels/step.h"
#include "outboard/error.h"
#include "outboard_codecs.h"
#include "quant/rounding.h"

namespace outboard::test {
namespace {

constexpr std::array kTypes{DType::kF32, DType::kBF16, DType::kF16};

bool takes_negative_values(Format format) {
  switch (format) {
#define OUTBOARD_FORMAT(type, stem) \
  case Format::k##type:             \
    return quant::type::kIsSigned;
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
  }
  return false;
}

/// Every format for the states that it can hold, with every block length; and the pairs that have
/// kernels of their own.
std::vector<StateFormats> all_format_pairs() {
  std::vector<StateFormats> pairs;
  for (size_t i = 0; i < kFormatCount; ++i) {
    const auto format = static_cast<Format>(i);
    std::vector<size_t> lengths(format_info(format).block_sizes.begin(),
                                format_info(format).block_sizes.end());
    if (lengths.empty()) lengths.push_back(0);
    for (const size_t length : lengths) {
      const StateFormat state = state_format(format, length);
      pairs.push_back({takes_negative_values(format) ? state : state_format(Format::kF32), state});
    }
  }
  for (const std::string_view name : state_format_names()) {
    pairs.push_back(state_formats_named(name));
  }
  return pairs;
}

std::vector<Combination> all_combinations(RuleId rule) {
  std::vector<Combination> combinations;
  for (const auto& hyper : hyper_parameter_sets(rule_info(rule))) {
    for (const WeightKind weight : kWeightKinds) {
      for (const DType gradient : kTypes) {
        for (const StateFormats formats : all_format_pairs()) {
          combinations.push_back({rule, hyper, gradient, weight.type, weight.master, formats});
        }
      }
    }
  }
  return combinations;
}

/// Whole strips, ragged ends, single elements; aligned and not.
const std::vector<Shape> kMixedShapes{{1},    {7, 1},      {128},        {255, 0, 1},
                                      {256},  {257, 3, 5}, {0},          {512, 1, 0},
                                      {1031}, {1024},      {1300, 0, 2}, {4, 1, 1}};

Combination adamw(DType type, MasterFormat master, StateFormats formats) {
  std::vector<double> hyper;
  for (const auto& parameter : rule_info(RuleId::kAdamW).hyper_parameters) {
    hyper.push_back(parameter.default_value);
  }
  return {RuleId::kAdamW, hyper, type, type, master, formats};
}

const StateFormats kPlain = state_formats_named("fp32");
const StateFormats kNarrow = state_formats_named("bf16");

class GpuStep : public testing::TestWithParam<size_t> {};

TEST_P(GpuStep, GivesTheBitsOfTheCpuForEveryCombination) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  uint64_t seed = 1;
  for (const Combination& combination : all_combinations(static_cast<RuleId>(GetParam()))) {
    Problem problem(combination, kMixedShapes, ++seed);
    for (const int64_t step : {1, 2, 9}) {
      problem.step_on_cpu(step);
      problem.step_on_gpu(launcher, step);
      problem.refresh_gradients(seed * 7 + static_cast<uint64_t>(step));
    }
    ASSERT_EQ(problem.difference(), "") << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, GpuStep, testing::Range(size_t{0}, kRuleCount),
                         [](const auto& info) {
                           return std::string(rule_info(static_cast<RuleId>(info.param)).name);
                         });

/// What the fast kernels serve.
std::vector<Combination> common_combinations() {
  std::vector<Combination> combinations;
  for (const char* const name :
       {"fp32", "bf16", "8bit", "4bit", "8bit/4bit", "dynamic8", "dynamic8-2048", "fp8"}) {
    const StateFormats formats = state_formats_named(name);
    combinations.push_back(adamw(DType::kF32, MasterFormat::kWeight, formats));
    combinations.push_back(adamw(DType::kBF16, MasterFormat::kSplit, formats));
    combinations.push_back(adamw(DType::kBF16, MasterFormat::kSplit8, formats));
    combinations.push_back(adamw(DType::kBF16, MasterFormat::kStochastic, formats));
  }
  return combinations;
}

TEST(GpuStepShapes, EverySizeUpToFourTilesAtEveryAlignmentInOneLaunch) {
  OUTBOARD_REQUIRE_GPU();
  std::vector<Shape> shapes;
  for (size_t elements = 1; elements <= 4 * kTileElements + 1; ++elements) {
    shapes.push_back(
        {elements, elements % 3 == 0 ? elements % 8 : 0, elements % 5 == 0 ? elements % 7 : 0});
  }
  gpu::StepLauncher launcher;
  for (const Combination& combination : common_combinations()) {
    Problem problem(combination, shapes, 5);
    problem.step_on_cpu(3);
    problem.step_on_gpu(launcher, 3);
    EXPECT_EQ(problem.difference(), "");
  }
}

TEST(GpuStepShapes, ManyBlocksOfOneParameter) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  for (const Combination& combination : common_combinations()) {
    Problem problem(combination, {{3'000'001}, {65'536, 1, 0}}, 6);
    problem.step_on_cpu(4);
    problem.step_on_gpu(launcher, 4);
    EXPECT_EQ(problem.difference(), "");
  }
}

TEST(GpuStepShapes, PiecesOfAParameterDrawTheNumbersOfTheWhole) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  for (const MasterFormat master : {MasterFormat::kStochastic, MasterFormat::kSplit8}) {
    Problem problem(adamw(DType::kBF16, master, kNarrow), {{100'003}, {2049}}, 7);
    problem.step_on_cpu(2);
    problem.step_on_gpu(launcher, 2, /*piece_elements=*/2048);
    EXPECT_EQ(problem.difference(), "");
  }
}

TEST(GpuStepShapes, OldWeightsMayLieElsewhere) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  for (const RuleId rule : {RuleId::kAdamW, RuleId::kLion, RuleId::kLAMB}) {
    for (const WeightKind weight : kWeightKinds) {
      for (const char* formats : {"fp32", "8bit"}) {
        Combination combination = adamw(weight.type, weight.master, state_formats_named(formats));
        combination.rule = rule;
        combination.hyper = hyper_parameter_sets(rule_info(rule)).front();
        Problem problem(combination, {{100'003}, {2049}, {700, 0, 1}}, 11);
        problem.step_on_cpu(3);
        problem.move_old_weights();
        problem.step_on_gpu(launcher, 3);
        EXPECT_EQ(problem.difference(), "");
      }
    }
  }
}

TEST(GpuStepShapes, IndexesBeyond32Bits) {
  OUTBOARD_REQUIRE_GPU();
  constexpr size_t kElements = (size_t{1} << 32) + 777;
  constexpr size_t kTail = 4096 + 777;
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  if (free_bytes < 5 * kElements) GTEST_SKIP() << "needs 20 GiB of device memory";
  std::vector<uint16_t> gradient(kTail);
  std::vector<uint16_t> weight(kTail);
  for (size_t i = 0; i < kTail; ++i) {
    gradient[i] = quant::bf16_nearest(static_cast<float>(i + 1));
    weight[i] = quant::bf16_nearest(1.0f / static_cast<float>(i + 1));
  }
  DeviceBytes device_gradient(kElements * 2);
  DeviceBytes device_weight(kElements * 2);
  const size_t tail_at = (kElements - kTail) * 2;
  cudaMemset(device_gradient.data(), 0, tail_at);
  cudaMemset(device_weight.data(), 0, tail_at);
  cudaMemcpy(device_gradient.data() + tail_at, gradient.data(), kTail * 2, cudaMemcpyDefault);
  cudaMemcpy(device_weight.data() + tail_at, weight.data(), kTail * 2, cudaMemcpyDefault);

  const RuleInfo& rule = rule_named("SGD");
  std::vector<double> hyper;
  for (const auto& parameter : rule.hyper_parameters) hyper.push_back(parameter.default_value);
  gpu::LaunchKey key{};
  key.rule = rule.id;
  key.scalars = rule.scalars(hyper, 1, 1.0);
  key.gradient_type = key.weight_type = DType::kBF16;
  key.master_format = MasterFormat::kStochastic;
  key.step = 1;
  gpu::DeviceParameter parameter;
  parameter.gradient = device_gradient.data();
  parameter.weight = device_weight.data();
  parameter.elements = kElements;
  parameter.random_key = random_key(1, 2);
  gpu::StepLauncher launcher;
  launcher.launch(key, {&parameter, 1}, nullptr);
  std::vector<uint16_t> updated(kTail);
  ASSERT_EQ(
      cudaMemcpy(updated.data(), device_weight.data() + tail_at, kTail * 2, cudaMemcpyDefault),
      cudaSuccess);

  for (size_t i = 0; i < kTail; ++i) {
    const float before = quant::f32_from_bf16(weight[i]);
    const float after = exact::fma(-1e-3f, quant::f32_from_bf16(gradient[i]), before);
    const uint32_t draw = random16(parameter.random_key, 1, 0, kElements - kTail + i);
    ASSERT_EQ(updated[i], quant::bf16_stochastic(after, draw)) << "element " << i << " of the tail";
  }
}

TEST(GpuStepTables, ManyAlternatingLaunchesOnTwoStreams) {
  OUTBOARD_REQUIRE_GPU();
  std::array<cudaStream_t, 2> streams;
  for (cudaStream_t& stream : streams) {
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  }
  gpu::StepLauncher launcher;
  std::vector<std::unique_ptr<Problem>> problems;
  for (size_t i = 0; i < 20; ++i) {
    problems.push_back(std::make_unique<Problem>(
        adamw(DType::kF32, MasterFormat::kWeight, kPlain),
        std::vector<Shape>{{1000 + 977 * i}, {300'000}, {5 + i}}, 40 + i));
  }
  for (int64_t step = 1; step <= 5; ++step) {
    for (size_t i = 0; i < problems.size(); ++i) {
      problems[i]->step_on_gpu(launcher, step, step % 2 == 0 ? 4096 : 0, streams[i % 2]);
      problems[i]->step_on_cpu(step);
    }
  }
  for (const auto& problem : problems) EXPECT_EQ(problem->difference(), "");
  for (cudaStream_t stream : streams) cudaStreamDestroy(stream);
}

TEST(GpuStepErrors, NameTheParameterAndLaunchNothing) {
  OUTBOARD_REQUIRE_GPU();
  DeviceBytes memory(1 << 16);
  gpu::LaunchKey key{};
  key.rule = RuleId::kAdamW;
  gpu::DeviceParameter good;
  good.gradient = memory.data();
  good.weight = memory.data() + 4096;
  good.codes = {memory.data() + 8192, memory.data() + 12288, nullptr, nullptr};
  good.elements = 100;
  const auto message = [&](const gpu::LaunchKey& with, const gpu::DeviceParameter& second) {
    gpu::StepLauncher launcher;
    try {
      const std::array parameters{good, second};
      launcher.launch(with, parameters, nullptr);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  gpu::DeviceParameter bad = good;
  bad.codes[1] = memory.data() + 12292;
  EXPECT_NE(message(key, bad).find("parameter 1"), std::string::npos);
  EXPECT_NE(message(key, bad).find("aligned to 16 bytes"), std::string::npos);
  bad = good;
  bad.codes[2] = memory.data() + 16384;
  EXPECT_NE(message(key, bad).find("other states"), std::string::npos);
  bad = good;
  bad.element_offset = 8;
  EXPECT_NE(message(key, bad).find("multiples of 256"), std::string::npos);
  bad = good;
  bad.weight = nullptr;
  EXPECT_NE(message(key, bad).find("no weight"), std::string::npos);
  gpu::LaunchKey split = key;
  split.master_format = MasterFormat::kSplit;
  EXPECT_NE(message(split, good).find("float32"), std::string::npos);
}

TEST(GpuStepValues, NonFiniteGradientsPropagateAsOnTheCpu) {
  OUTBOARD_REQUIRE_GPU();
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::array<float, 6> gradient{1.0f, infinity, -infinity, nan, 1e30f, -0.0f};
  const Combination combination = adamw(DType::kF32, MasterFormat::kWeight, kPlain);
  const RuleScalars scalars = rule_info(combination.rule).scalars(combination.hyper, 1, 1.0);
  std::array<float, kTileElements> m = {};
  std::array<float, kTileElements> v = {};
  std::array<float, 6> weight{1, 1, 1, 1, 1, 1};
  DeviceBytes memory(8192);
  cudaMemset(memory.data(), 0, 8192);
  cudaMemcpy(memory.data(), gradient.data(), sizeof(gradient), cudaMemcpyDefault);
  cudaMemcpy(memory.data() + 1024, weight.data(), sizeof(weight), cudaMemcpyDefault);
  gpu::LaunchKey key{};
  key.rule = combination.rule;
  key.scalars = scalars;
  gpu::DeviceParameter parameter;
  parameter.gradient = memory.data();
  parameter.weight = memory.data() + 1024;
  parameter.codes = {memory.data() + 2048, memory.data() + 4096, nullptr, nullptr};
  parameter.elements = gradient.size();
  gpu::StepLauncher launcher;
  launcher.launch(key, {&parameter, 1}, nullptr);
  std::array<float, 6> on_gpu;
  memory.download(nullptr, 0);
  cudaMemcpy(on_gpu.data(), memory.data() + 1024, sizeof(on_gpu), cudaMemcpyDefault);

  cpu::ParameterUpdate update = {};
  update.rule = combination.rule;
  update.scalars = scalars;
  update.elements = gradient.size();
  update.gradient = gradient.data();
  update.weight = weight.data();
  update.states[0].codes = m.data();
  update.states[1].codes = v.data();
  cpu::ResolvedUpdate(update).run(0, gradient.size());
  for (size_t i = 0; i < weight.size(); ++i) {
    const bool both_nan = std::isnan(weight[i]) && std::isnan(on_gpu[i]);
    EXPECT_TRUE(both_nan || exact::bits(weight[i]) == exact::bits(on_gpu[i])) << "element " << i;
  }
}

}  // namespace
}  // namespace outboard::test
