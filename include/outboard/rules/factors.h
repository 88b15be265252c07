// A second moment kept as row and column means of the parameter as a matrix (Shazeer, Stern:
// Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, ICML 2018): the arithmetic that
// every rule which does so shares. Sums and their order are cpu_kernels/factors.h.
#ifndef OUTBOARD_RULES_FACTORS_H_
#define OUTBOARD_RULES_FACTORS_H_

#include "outboard/hd.h"

namespace outboard::rules {

/// The lanes in which the rows are added up for their mean.
inline constexpr int kRowMeanLanes = 64;

/// A row's or column's average after a step: `total` is the sum of `count` squared gradients.
OUTBOARD_HD float moved_factor(float average, double total, double count, float one_minus_beta) {
  const auto mean = static_cast<float>(exact::div(total, count));
  return exact::flush_subnormal(exact::lerp(average, mean, one_minus_beta));
}

/// A row's average in units of the mean of all rows. Nothing but zeros gives 0, not 0 / 0.
OUTBOARD_HD float row_share(float row, double row_mean) {
  return row_mean == 0 ? 0.0f : static_cast<float>(exact::div(static_cast<double>(row), row_mean));
}

/// The second moment of one element.
OUTBOARD_HD float factored_moment(float share, float column) { return exact::mul(share, column); }

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_FACTORS_H_
