// Row and column means: the first pass against an element-by-element reference on every target, for
// every gradient type, shape, cut and number of threads; whole steps against a plain loop in
// double.
#include "cpu_kernels/factors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu_kernels/gradient_math.h"
#include "cpu_kernels/parallel.h"
#include "outboard/error.h"
#include "quant/rounding.h"
#include "support/numbers.h"
#include "support/reference_norms.h"
#include "support/rule_cases.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::Numbers;
using ::outboard::testing::reference_scalars;
using ::outboard::testing::same_bits;

struct Matrix {
  size_t rows;
  size_t columns;
};

// One row, one column, odd ones, more than a segment of either, and neither a multiple of anything.
constexpr Matrix kMatrices[] = {{1, 1},   {1, 300},   {300, 1},   {7, 5},     {64, 64},
                                {65, 63}, {3, 4'099}, {4'099, 3}, {130, 129}, {2, 8'192}};

/// A factored parameter of bf16 weights with fp32 masters, or of fp32 weights.
class Factored {
 public:
  Factored(Matrix shape, DType type, const char* formats, uint64_t seed)
      : shape_(shape), elements_(shape.rows * shape.columns), rows_(padded_elements(shape.rows)) {
    columns_.resize(padded_elements(shape.columns));
    const StateFormat format = state_formats_named(formats).signed_state;
    codes_.resize(format.code_bytes(elements_));
    scales_.resize(format.scale_count(elements_));
    gradient_.resize(elements_ * bytes_of(type));
    weight_.resize(elements_ * bytes_of(type));
    master_.resize(type == DType::kF32 ? 0 : padded_elements(elements_));
    Numbers numbers(seed);
    const std::vector<float> weights = numbers.many(elements_, &Numbers::spread);
    store(weights, type, weight_);
    if (!master_.empty()) std::copy(weights.begin(), weights.end(), master_.begin());
    update_ = {.rule = RuleId::kAdamWFactored,
               .scalars = {},
               .elements = elements_,
               .rows = shape.rows,
               .gradient = gradient_.data(),
               .gradient_type = type,
               .weight = weight_.data(),
               .weight_type = type,
               .master_format = master_.empty() ? MasterFormat::kWeight : MasterFormat::kF32,
               .master = master_.empty() ? nullptr : master_.data(),
               .random_key = random_key(1, 2)};
    update_.formats[0] = format;
    update_.states = {StateArray{codes_.data(), scales_.empty() ? nullptr : scales_.data(),
                                 format.block_elements},
                      StateArray{rows_.data()}, StateArray{columns_.data()}};
  }

  static std::vector<double> hyper() { return default_hyper(rule_info(RuleId::kAdamWFactored)); }

  /// Gradients as the parameter's type holds them.
  void give(const std::vector<float>& gradients) {
    store(gradients, update_.gradient_type, gradient_);
  }

  /// The update to come, as if after `step` - 1 others.
  const ParameterUpdate& next(int64_t step, double scale = 0.37) {
    update_.step = static_cast<uint32_t>(step);
    update_.scalars = rule_info(update_.rule).scalars(hyper(), step, scale);
    return update_;
  }

  void step(int64_t number, double scale = 0.37) {
    next(number, scale);
    update_.scalars = factored_scalars(update_);
    ResolvedUpdate(update_).run(0, elements_);
  }

  [[nodiscard]] std::vector<float> rows() const {
    return {rows_.begin(), rows_.begin() + static_cast<ptrdiff_t>(shape_.rows)};
  }
  [[nodiscard]] std::vector<float> columns() const {
    return {columns_.begin(), columns_.begin() + static_cast<ptrdiff_t>(shape_.columns)};
  }
  [[nodiscard]] std::vector<float> values() const {
    std::vector<float> result;
    for (size_t i = 0; i < elements_; ++i) result.push_back(testing::reference_master(update_, i));
    return result;
  }
  [[nodiscard]] float gradient(size_t i) const {
    return testing::reference_load(update_.gradient_type, gradient_.data(), i);
  }
  [[nodiscard]] size_t elements() const { return elements_; }
  [[nodiscard]] Matrix shape() const { return shape_; }

 private:
  static void store(const std::vector<float>& values, DType type, std::vector<std::byte>& out) {
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half =
          type == DType::kBF16 ? quant::bf16_nearest(values[i]) : quant::f16_nearest(values[i]);
      const void* const from = type == DType::kF32 ? static_cast<const void*>(&values[i]) : &half;
      std::memcpy(out.data() + i * bytes_of(type), from, bytes_of(type));
    }
  }

  Matrix shape_;
  size_t elements_;
  std::vector<float> rows_, columns_, scales_, master_;
  std::vector<uint8_t> codes_;
  std::vector<std::byte> gradient_, weight_;
  ParameterUpdate update_;
};

/// The means and the step's scalars after a first pass that `pass` makes.
template <class Pass>
void expect_reference(Matrix shape, DType type, uint64_t seed, const Pass& pass) {
  Numbers numbers(seed);
  const auto gradients = numbers.many(shape.rows * shape.columns, &Numbers::spread);
  Factored expected(shape, type, "fp32", seed);
  Factored actual(shape, type, "fp32", seed);
  for (int64_t step = 1; step <= 2; ++step) {
    expected.give(gradients);
    actual.give(gradients);
    const RuleScalars scalars = reference_scalars(expected.next(step));
    EXPECT_TRUE(scalars == pass(actual.next(step)));
    EXPECT_TRUE(same_bits(expected.rows(), actual.rows())) << shape.rows << "x" << shape.columns;
    EXPECT_TRUE(same_bits(expected.columns(), actual.columns()))
        << shape.rows << "x" << shape.columns;
  }
  EXPECT_NE(expected.rows()[0], 0);
}

TEST(Factors, EqualTheReferenceForEveryShapeTypeAndTarget) {
  uint64_t seed = 0;
  for (const Matrix& shape : kMatrices) {
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
      ++seed;
      for_each_target([&] { expect_reference(shape, type, seed, &factored_scalars); });
    }
  }
}

TEST(Factors, UnitsAndThreadsNeverChangeABit) {
  for (const Matrix& shape : {Matrix{4'100, 70}, Matrix{70, 4'100}, Matrix{1, 20'000}}) {
    for (const int threads : {1, 2, 3}) {
      for (const size_t grain : {1, 2, 7}) {
        expect_reference(shape, DType::kBF16, 9, [&](const ParameterUpdate& update) {
          ParameterFactors factors(update);
          EXPECT_GT(factors.units(), 1U);
          Arena(threads).run(factors.units(), grain,
                             [&](size_t first, size_t last) { factors.run(first, last); });
          return factors.finish();
        });
      }
    }
  }
}

TEST(Factors, BothLoopsAddTheSameSquares) {
  Numbers numbers(3);
  for (const size_t count : {1, 7, 8, 64, 67}) {
    const auto values = numbers.many(count, &Numbers::wild);
    std::vector<float> best(count, 0.5f);
    std::vector<float> portable(count, 0.5f);
    for (int i = 0; i < 3; ++i) {
      add_squares(values.data(), count, best.data());
      add_squares(values.data(), count, portable.data(), GradientLoops::kPortable);
    }
    EXPECT_TRUE(same_bits(best, portable)) << count;
  }
}

/// Steps in double from the formulas alone: what rounding may differ from, and no more.
class Oracle {
 public:
  explicit Oracle(const Factored& start)
      : shape_(start.shape()), m_(start.elements()), rows_(shape_.rows), columns_(shape_.columns) {
    for (const float value : start.values()) weights_.push_back(value);
  }

  void step(const Factored& source, int64_t number, double scale) {
    const std::vector<double> h = Factored::hyper();
    std::vector<double> row_sums(shape_.rows), column_sums(shape_.columns);
    for (size_t i = 0; i < m_.size(); ++i) {
      const double g = static_cast<double>(source.gradient(i)) * scale;
      row_sums[i / shape_.columns] += g * g;
      column_sums[i % shape_.columns] += g * g;
      m_[i] += (1 - h[1]) * (g - m_[i]);
    }
    double row_mean = 0;
    for (size_t i = 0; i < shape_.rows; ++i) {
      rows_[i] += (1 - h[2]) * (row_sums[i] / static_cast<double>(shape_.columns) - rows_[i]);
      row_mean += rows_[i] / static_cast<double>(shape_.rows);
    }
    for (size_t j = 0; j < shape_.columns; ++j) {
      columns_[j] += (1 - h[2]) * (column_sums[j] / static_cast<double>(shape_.rows) - columns_[j]);
    }
    const double t = static_cast<double>(number);
    for (size_t i = 0; i < m_.size(); ++i) {
      const double v = rows_[i / shape_.columns] * columns_[i % shape_.columns] / row_mean;
      const double root = std::sqrt(v) / std::sqrt(1 - std::pow(h[2], t)) + h[3];
      weights_[i] = weights_[i] * (1 - h[0] * h[4]) - h[0] / (1 - std::pow(h[1], t)) * m_[i] / root;
    }
  }
  [[nodiscard]] double weight(size_t i) const { return weights_[i]; }
  [[nodiscard]] double row(size_t i) const { return rows_[i]; }

 private:
  Matrix shape_;
  std::vector<double> weights_, m_, rows_, columns_;
};

TEST(Factors, StepsStayCloseToTheFormulasInDouble) {
  for (const Matrix& shape : kMatrices) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      Factored factored(shape, type, "fp32", 4);
      Oracle oracle(factored);
      Numbers numbers(5);
      for (int64_t step = 1; step <= 5; ++step) {
        factored.give(numbers.many(factored.elements(), &Numbers::spread));
        factored.step(step);
        oracle.step(factored, step, static_cast<double>(0.37f));
      }
      const std::vector<float> values = factored.values();
      for (size_t i = 0; i < values.size(); ++i) {
        // A few roundings of the weight in each step, and of steps of about lr.
        ASSERT_NEAR(values[i], oracle.weight(i), 5e-7 * std::abs(oracle.weight(i)) + 1e-3 * 1e-5)
            << shape.rows << "x" << shape.columns << " element " << i;
      }
      for (size_t i = 0; i < shape.rows; ++i) {
        ASSERT_NEAR(factored.rows()[i], oracle.row(i), 1e-5 * oracle.row(i));
      }
    }
  }
}

TEST(Factors, OfOneRowAreAdamWsSecondMoment) {
  Factored factored({1, 500}, DType::kF32, "fp32", 6);
  std::vector<float> weight = factored.values();
  std::vector<float> m(512), v(512);
  Numbers numbers(7);
  const RuleInfo& adamw = rule_info(RuleId::kAdamW);
  for (int64_t step = 1; step <= 3; ++step) {
    std::vector<float> gradients = numbers.many(500, &Numbers::spread);
    factored.give(gradients);
    factored.step(step, 1.0);
    ParameterUpdate update = {.rule = adamw.id,
                              .scalars = adamw.scalars(default_hyper(adamw), step, 1.0),
                              .elements = 500,
                              .gradient = gradients.data(),
                              .weight = weight.data(),
                              .states = {StateArray{m.data()}, StateArray{v.data()}},
                              .random_key = {}};
    ResolvedUpdate(update).run(0, 500);
  }
  const std::vector<float> values = factored.values();
  for (size_t i = 0; i < 500; ++i)
    EXPECT_NEAR(values[i], weight[i], 1e-8 + 1e-6 * std::abs(weight[i]));
}

TEST(Factors, NoGradientMovesNothingAndIsNoNumberNowhere) {
  for (const char* formats : {"fp32", "8bit"}) {
    Factored factored({9, 130}, DType::kF32, formats, 8);
    const std::vector<float> before = factored.values();
    factored.give(std::vector<float>(factored.elements(), 0.0f));
    factored.step(1);
    const std::vector<float> after = factored.values();
    for (size_t i = 0; i < after.size(); ++i) {
      EXPECT_EQ(after[i], before[i] * static_cast<float>(1 - 1e-3 * 1e-2)) << i;
    }
  }
}

TEST(Factors, ZeroRowsStayWhereOthersMove) {
  Factored factored({2, 40}, DType::kF32, "8bit", 8);
  const std::vector<float> before = factored.values();
  std::vector<float> gradients(80, 0.0f);
  for (size_t i = 40; i < 80; ++i) gradients[i] = 1e-3f;
  factored.give(gradients);
  factored.step(1);
  const std::vector<float> after = factored.values();
  for (size_t i = 0; i < 80; ++i) {
    ASSERT_TRUE(std::isfinite(after[i]));
    const double moved =
        static_cast<double>(before[i]) * (1 - 1e-5) - static_cast<double>(after[i]);
    // The only row that moves has twice the mean, and all of the columns' sums: v is its g^2.
    EXPECT_NEAR(moved, i < 40 ? 0 : 1e-3, 2e-5) << i;
  }
}

TEST(Factors, WhatIsNotFiniteIsNotHidden) {
  Factored factored({3, 20}, DType::kF32, "fp32", 8);
  std::vector<float> gradients(60, 1.0f);
  gradients[25] = std::numeric_limits<float>::quiet_NaN();
  factored.give(gradients);
  factored.step(1);
  EXPECT_TRUE(std::isnan(factored.values()[25]));
  EXPECT_TRUE(std::isnan(factored.rows()[1]));
  EXPECT_FALSE(std::isnan(factored.rows()[0]));
}

TEST(Factors, RefuseOtherRulesAndShapesThatAreNone) {
  ParameterUpdate update = {};
  update.rule = RuleId::kAdamW;
  EXPECT_THROW(ParameterFactors{update}, Error);
  update.rule = RuleId::kAdamWFactored;
  update.elements = 10;
  for (const size_t rows : {0, 3}) {
    update.rows = rows;
    EXPECT_THROW(ParameterFactors{update}, Error) << rows;
  }
}

}  // namespace
}  // namespace outboard::cpu
