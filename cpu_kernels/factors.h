// The first pass of a rule that keeps row and column means (outboard/rules/factors.h), on the CPU:
// moves both towards the means of the squared gradient and gives the rows' mean to the step's
// scalars. The second pass is cpu_kernels/step.h.
#ifndef OUTBOARD_CPU_KERNELS_FACTORS_H_
#define OUTBOARD_CPU_KERNELS_FACTORS_H_

#include <cstddef>
#include <span>
#include <vector>

#include "cpu_kernels/step.h"
#include "outboard/rule.h"

namespace outboard::cpu {

/// The row and column means of one parameter in one step. A row, and a column, is summed like a
/// parameter of its own, in the order of gradient_math.h: segments of 4,096 elements in fp32, added
/// in fp64 in index order. So threads never change a bit.
class ParameterFactors {
 public:
  /// `update` is the step to come, with the scalars that the rule gives without the pass; its
  /// arrays must stay as they are until finish(). Throws Error(kValue) if the rule keeps no such
  /// means.
  explicit ParameterFactors(const ParameterUpdate& update);

  /// Pieces of work of about the same size.
  [[nodiscard]] size_t units() const { return row_units_ + column_units_; }

  /// Sums units [first, last). Calls on disjoint ranges may run at the same time.
  void run(size_t first, size_t last);

  /// After run() has covered all units, and once: moves the means, and gives the step's scalars.
  [[nodiscard]] RuleScalars finish();

 private:
  void load(size_t first, size_t count, float* values) const;
  void sum_rows(size_t unit);
  void sum_columns(size_t unit);

  ParameterUpdate update_;
  const RuleInfo& rule_;
  FactorScalars scalars_;
  size_t columns_;
  size_t row_segments_;     ///< of one row
  size_t column_segments_;  ///< of one column
  size_t segments_per_unit_;
  size_t row_units_;
  size_t strips_;  ///< of neighbouring columns that are summed together
  size_t column_units_;
  std::vector<float> row_sums_;     ///< of each row its segments
  std::vector<float> column_sums_;  ///< of each segment its columns
};

/// The whole pass in the calling thread.
[[nodiscard]] RuleScalars factored_scalars(const ParameterUpdate& update);

/// The second moments of elements [first, first + count) of a factored parameter.
void join_factors(const FactorScalars& scalars, std::span<const float> rows,
                  std::span<const float> columns, size_t first, size_t count, float* moments);

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_FACTORS_H_
