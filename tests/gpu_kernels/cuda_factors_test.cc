// Row and column means on the GPU: sums, moved means, scalars and the step against the CPU's, byte
// for byte, for matrices of every proportion in one launch. Every combination of types and formats
// is in cuda_step_test.cc, steps from numbers on the device in cuda_capture_test.cc.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gpu_kernels/cuda_problem.h"
#include "gpu_kernels/step.h"
#include "outboard/error.h"

namespace outboard::test {
namespace {

Combination factored(DType gradient, DType weight, MasterFormat master, const char* formats) {
  return {
      RuleId::kAdamWFactored,      {1e-3, 0.9, 0.999, 1e-8, 0.01, 0, 0}, gradient, weight, master,
      state_formats_named(formats)};
}

std::vector<Combination> common_combinations() {
  std::vector<Combination> all;
  for (const char* formats : {"fp32", "bf16", "8bit", "4bit"}) {
    all.push_back(factored(DType::kF32, DType::kF32, MasterFormat::kWeight, formats));
    all.push_back(factored(DType::kBF16, DType::kBF16, MasterFormat::kSplit, formats));
    all.push_back(factored(DType::kF32, DType::kBF16, MasterFormat::kSplit8, formats));
    all.push_back(factored(DType::kF16, DType::kF16, MasterFormat::kF32, formats));
  }
  return all;
}

Shape matrix(size_t rows, size_t columns, size_t shift = 0) {
  return {rows * columns, shift, shift / 2, rows};
}

TEST(GpuFactors, EqualTheCpuForMatricesOfEveryProportionInOneLaunch) {
  OUTBOARD_REQUIRE_GPU();
  // Around lanes, warps, strips, segments and blocks, along either.
  const std::vector<Shape> shapes{
      matrix(1, 1),        matrix(1, 300),      matrix(300, 1),       matrix(31, 33, 1),
      matrix(33, 31),      matrix(64, 64, 3),   matrix(65, 63),       matrix(3, 4'095),
      matrix(3, 4'096),    matrix(3, 4'097, 5), matrix(4'095, 3),     matrix(4'096, 3),
      matrix(4'097, 3, 7), matrix(1, 40'961),   matrix(40'961, 1),    matrix(2, 8'192),
      matrix(8'193, 2),    matrix(130, 129),    matrix(1'000, 1'003), matrix(9'001, 65, 1)};
  gpu::StepLauncher launcher;
  for (const Combination& combination : common_combinations()) {
    Problem problem(combination, shapes, 21);
    for (int64_t step = 1; step <= 3; ++step) {
      problem.step_on_cpu(step);
      problem.step_on_gpu(launcher, step);
      problem.refresh_gradients(30 + static_cast<uint64_t>(step));
    }
    EXPECT_EQ(problem.difference(), "");
  }
}

TEST(GpuFactors, TablesOfOneAndOfManyParametersTakeTurns) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  const Combination combination = factored(DType::kF32, DType::kF32, MasterFormat::kWeight, "fp32");
  Problem one(combination, {matrix(70, 100)}, 22);
  Problem many(combination, {matrix(3, 5), {0}, matrix(4'100, 20), matrix(20, 4'100)}, 23);
  for (int64_t step = 1; step <= 3; ++step) {
    for (Problem* problem : {&one, &many}) {
      problem->step_on_cpu(step);
      problem->step_on_gpu(launcher, step);
    }
  }
  EXPECT_EQ(one.difference(), "");
  EXPECT_EQ(many.difference(), "");
}

TEST(GpuFactors, PiecesAndRowsThatAreNoneAreRefused) {
  OUTBOARD_REQUIRE_GPU();
  gpu::StepLauncher launcher;
  const Combination combination = factored(DType::kF32, DType::kF32, MasterFormat::kWeight, "fp32");
  const auto refusal = [&](const Shape& shape, size_t piece_elements) -> std::string {
    Problem problem(combination, {shape}, 24);
    try {
      problem.step_on_gpu(launcher, 1, piece_elements);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal(matrix(128, 100), 2'048).find("launch it whole"), std::string::npos);
  EXPECT_NE(refusal({100, 0, 0, 7}, 0).find("do not divide"), std::string::npos);
}

}  // namespace
}  // namespace outboard::test
