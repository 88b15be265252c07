// The first pass over rows and columns; see factors.h. Squares are summed by gradient_math.h.
#include "cpu_kernels/factors.h"

#include <algorithm>
#include <array>
#include <bit>

#include "cpu_kernels/gradient_math.h"
#include "outboard/error.h"
#include "outboard/hd.h"
#include "outboard/rules/factors.h"

namespace outboard::cpu {
namespace {

constexpr size_t kLanes = 64;
constexpr size_t kStripColumns = 64;  ///< their 64 lanes of sums fill half of an L1 cache
constexpr size_t kUnitElements = 8192;

float* vector_of(const ParameterUpdate& update, const RuleInfo& rule, StateShape shape) {
  const auto state = std::ranges::find(rule.states, shape, &StateInfo::shape);
  return static_cast<float*>(update.states[static_cast<size_t>(state - rule.states.begin())].codes);
}

double mean_of_rows(std::span<const float> rows) {
  std::array<double, rules::kRowMeanLanes> lanes = {};
  for (size_t i = 0; i < rows.size(); ++i) {
    double& lane = lanes[i % lanes.size()];
    lane = exact::add(lane, static_cast<double>(rows[i]));
  }
  for (size_t k = lanes.size() / 2; k > 0; k /= 2) {
    for (size_t i = 0; i < k; ++i) lanes[i] = exact::add(lanes[i], lanes[i + k]);
  }
  return exact::div(lanes[0], static_cast<double>(rows.size()));
}

/// sum_of_squares of at most 64 values: a lane has one or none, and halvings that would only add
/// zeros are left out.
float sum_short(const float* values, size_t count) {
  float lanes[kLanes];
  const size_t padded = std::bit_ceil(count);
  for (size_t i = 0; i < count; ++i) lanes[i] = exact::mul(values[i], values[i]);
  std::fill(lanes + count, lanes + padded, 0.0f);
  for (size_t k = padded / 2; k > 0; k /= 2) {
    for (size_t i = 0; i < k; ++i) lanes[i] = exact::add(lanes[i], lanes[i + k]);
  }
  return lanes[0];
}

}  // namespace

ParameterFactors::ParameterFactors(const ParameterUpdate& update)
    : update_(update), rule_(rule_info(update.rule)) {
  if (rule_.factor_scalars == nullptr) {
    fail(ErrorKind::kValue, "ParameterFactors", rule_.name,
         " keeps no row and column means; update its parameters without this pass");
  }
  if (update.rows == 0 || update.elements % update.rows != 0) {
    fail(ErrorKind::kValue, "ParameterFactors", update.elements, " elements are not ", update.rows,
         " rows; give the rows of the parameter as a matrix");
  }
  scalars_ = rule_.factor_scalars(update.scalars);
  columns_ = update.elements / update.rows;
  row_segments_ = norm_segments(columns_);
  column_segments_ = norm_segments(update.rows);
  segments_per_unit_ = std::max<size_t>(kUnitElements / std::max<size_t>(columns_, 1), 1);
  row_sums_.resize(update.rows * row_segments_);
  row_units_ = (row_sums_.size() + segments_per_unit_ - 1) / segments_per_unit_;
  strips_ = (columns_ + kStripColumns - 1) / kStripColumns;
  column_sums_.resize(column_segments_ * columns_);
  column_units_ = column_segments_ * strips_;
}

void ParameterFactors::run(size_t first, size_t last) {
  for (size_t unit = first; unit < last; ++unit) {
    unit < row_units_ ? sum_rows(unit) : sum_columns(unit - row_units_);
  }
}

/// Elements as the rule sees them, scaled.
void ParameterFactors::load(size_t first, size_t count, float* values) const {
  const auto* gradient = static_cast<const std::byte*>(update_.gradient);
  widen(gradient + first * bytes_of(update_.gradient_type), update_.gradient_type, count, values);
  for (size_t i = 0; i < count; ++i) values[i] = exact::mul(values[i], scalars_.gradient_scale);
}

void ParameterFactors::sum_rows(size_t unit) {
  const size_t first = unit * segments_per_unit_;
  const size_t last = std::min(first + segments_per_unit_, row_sums_.size());
  alignas(64) float values[kNormSegmentElements];
  if (columns_ <= kLanes) {
    const size_t most = kNormSegmentElements / columns_;  // rows of one load
    for (size_t row = first; row < last; row += most) {
      const size_t count = std::min(most, last - row);
      load(row * columns_, count * columns_, values);
      for (size_t i = 0; i < count; ++i) {
        row_sums_[row + i] = sum_short(values + i * columns_, columns_);
      }
    }
    return;
  }
  for (size_t i = first; i < last; ++i) {
    const size_t column = i % row_segments_ * kNormSegmentElements;
    const size_t count = std::min(kNormSegmentElements, columns_ - column);
    load(i / row_segments_ * columns_ + column, count, values);
    sum_of_squares(values, DType::kF32, count, &row_sums_[i]);
  }
}

void ParameterFactors::sum_columns(size_t unit) {
  alignas(64) float lanes[kLanes * kStripColumns] = {};  // of each lane the strip's columns
  alignas(64) float values[kLanes * kStripColumns];
  const size_t segment = unit / strips_;
  const size_t column = unit % strips_ * kStripColumns;
  const size_t count = std::min(kStripColumns, columns_ - column);
  const size_t first = segment * kNormSegmentElements;
  const size_t last = std::min(first + kNormSegmentElements, update_.rows);
  // Rows that are all in the strip follow one another in memory, as their lanes do.
  const size_t together = strips_ == 1 ? kLanes : 1;
  for (size_t row = first; row < last; row += together) {
    const size_t elements = std::min(together, last - row) * count;
    load(row * columns_ + column, elements, values);
    add_squares(values, elements, lanes + row % kLanes * count);
  }
  for (size_t k = kLanes / 2; k > 0; k /= 2) {
    for (size_t i = 0; i < k * count; ++i) lanes[i] = lanes[i] + lanes[i + k * count];
  }
  std::copy_n(lanes, count, &column_sums_[segment * columns_ + column]);
}

RuleScalars ParameterFactors::finish() {
  const std::span rows(vector_of(update_, rule_, StateShape::kRows), update_.rows);
  const std::span columns(vector_of(update_, rule_, StateShape::kColumns), columns_);
  for (size_t i = 0; i < rows.size(); ++i) {
    double total = 0;
    for (size_t s = 0; s < row_segments_; ++s) total += row_sums_[i * row_segments_ + s];
    rows[i] =
        rules::moved_factor(rows[i], total, static_cast<double>(columns_), scalars_.one_minus_beta);
  }
  for (size_t j = 0; j < columns.size(); ++j) {
    double total = 0;
    for (size_t s = 0; s < column_segments_; ++s) total += column_sums_[s * columns_ + j];
    columns[j] = rules::moved_factor(columns[j], total, static_cast<double>(update_.rows),
                                     scalars_.one_minus_beta);
  }
  return rule_.with_row_mean(update_.scalars, mean_of_rows(rows));
}

RuleScalars factored_scalars(const ParameterUpdate& update) {
  ParameterFactors factors(update);
  factors.run(0, factors.units());
  return factors.finish();
}

void join_factors(const FactorScalars& scalars, std::span<const float> rows,
                  std::span<const float> columns, size_t first, size_t count, float* moments) {
  size_t column = first % columns.size();
  for (size_t row = first / columns.size(); count > 0; ++row) {
    const float share = rules::row_share(rows[row], scalars.row_mean);
    const size_t length = std::min(columns.size() - column, count);
    for (size_t j = 0; j < length; ++j) {
      moments[j] = rules::factored_moment(share, columns[column + j]);
    }
    moments += length;
    count -= length;
    column = 0;
  }
}

}  // namespace outboard::cpu
