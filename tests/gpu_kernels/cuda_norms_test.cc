// Rules that need norms on the GPU: the measuring pass and the ratios against the CPU's, byte for
// byte, around segments and blocks, for many parameters in one launch. Every combination of types
// and formats is in cuda_step_test.cc.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gpu_kernels/cuda_problem.h"
#include "gpu_kernels/step.h"
#include "outboard/error.h"

namespace outboard::test {
namespace {

/// The rules that need norms, each true to its paper and clipping.
std::vector<Combination> combinations(DType type, MasterFormat master, const char* formats) {
  std::vector<Combination> all;
  for (size_t i = 0; i < kRuleCount; ++i) {
    const RuleInfo& rule = rule_info(static_cast<RuleId>(i));
    if (rule.with_norms == nullptr) continue;
    for (const double max_unorm : {0.0, 1e-3}) {
      std::vector<double> hyper;
      for (const HyperParameter& parameter : rule.hyper_parameters) {
        const double value = parameter.key == "weight_decay" ? 0.1 : parameter.default_value;
        hyper.push_back(parameter.key == "max_unorm" ? max_unorm : value);
      }
      all.push_back({rule.id, hyper, type, type, master, state_formats_named(formats)});
    }
  }
  return all;
}

std::vector<Combination> common_combinations() {
  std::vector<Combination> all;
  for (const char* formats : {"fp32", "bf16", "8bit"}) {
    for (const Combination& plain : combinations(DType::kF32, MasterFormat::kWeight, formats)) {
      all.push_back(plain);
    }
    for (const MasterFormat master : {MasterFormat::kSplit, MasterFormat::kSplit8}) {
      for (const Combination& split : combinations(DType::kBF16, master, formats)) {
        all.push_back(split);
      }
    }
  }
  return all;
}

TEST(GpuNorms, EqualTheCpuAroundTilesSegmentsAndBlocksInOneLaunch) {
  OUTBOARD_REQUIRE_GPU();
  std::vector<Shape> shapes;
  for (const size_t whole : {size_t{0}, size_t{256}, size_t{4096}, size_t{8192}, size_t{40'960}}) {
    for (const size_t elements : {whole + 1, whole + 63, whole + 64, whole + 65, whole + 4095}) {
      shapes.push_back(
          {elements, elements % 3 == 0 ? elements % 8 : 0, elements % 5 == 0 ? elements % 7 : 0});
    }
  }
  gpu::StepLauncher launcher;
  for (const Combination& combination : common_combinations()) {
    Problem problem(combination, shapes, 11);
    for (int64_t step = 1; step <= 3; ++step) {
      problem.step_on_cpu(step);
      problem.step_on_gpu(launcher, step);
      problem.refresh_gradients(20 + static_cast<uint64_t>(step));
    }
    EXPECT_EQ(problem.difference(), "");
  }
}

TEST(GpuNorms, EqualTheCpuForManySegments) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  for (const Combination& combination : common_combinations()) {
    Problem problem(combination, {{3'000'001}, {5}, {1 << 18}, {700'000, 1, 3}}, 12);
    problem.step_on_cpu(4);
    problem.step_on_gpu(launcher, 4);
    EXPECT_EQ(problem.difference(), "");
  }
}

/// The launch table of the same parameters has a place for norms or none, as the rule needs.
TEST(GpuNorms, RulesWithAndWithoutNormsTakeTurnsOnTheSameParameters) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  const Combination adamw{RuleId::kAdamW,        {1e-3, 0.9, 0.999, 1e-8, 0.01, 0, 0},
                          DType::kF32,           DType::kF32,
                          MasterFormat::kWeight, state_formats_named("fp32")};
  const std::vector<double> lamb{1e-3, 0.9, 0.999, 1e-8, 0.01, 0, 0};
  Problem problem(adamw, {{10'000}, {77}}, 13);
  for (int64_t step = 1; step <= 4; ++step) {
    if (step % 2 == 0) problem.use_rule(RuleId::kLAMB, lamb);
    if (step % 2 == 1) problem.use_rule(RuleId::kAdamW, adamw.hyper);
    problem.step_on_cpu(step);
    problem.step_on_gpu(launcher, step);
  }
  EXPECT_EQ(problem.difference(), "");
}

TEST(GpuNorms, PiecesOfAParameterAreRefused) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  const Combination combination = combinations(DType::kF32, MasterFormat::kWeight, "fp32").front();
  Problem problem(combination, {{10'000}}, 15);
  try {
    problem.step_on_gpu(launcher, 1, /*piece_elements=*/2048);
    FAIL() << "norms of a piece are not those of the parameter";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("launch it whole"), std::string::npos);
  }
  EXPECT_EQ(problem.difference(), "");
}

}  // namespace
}  // namespace outboard::test
