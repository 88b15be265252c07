// The first pass of a rule that needs norms, on the CPU: sums of squares of one whole parameter's
// weight and of the rule's measured values, and the scalars that they give. It stores nothing in
// the parameter; the second pass is cpu_kernels/step.h.
#ifndef OUTBOARD_CPU_KERNELS_MEASURE_H_
#define OUTBOARD_CPU_KERNELS_MEASURE_H_

#include <cstddef>
#include <vector>

#include "cpu_kernels/rule_kernel.h"
#include "cpu_kernels/step.h"

namespace outboard::cpu {

/// The norms of one parameter in one step. Sums are kept per segment, in the order of
/// gradient_math.h, and added in index order: ranges and threads never change a bit.
class ParameterNorms {
 public:
  /// `update` is the step to come, with the scalars that the rule gives without norms; its arrays
  /// must stay as they are until scalars() is called. Throws Error(kValue) if the rule needs none.
  explicit ParameterNorms(const ParameterUpdate& update);

  /// Measures elements [first, last), cut at whole segments or the parameter's end. Calls on
  /// disjoint ranges may run at the same time.
  void run(size_t first, size_t last);

  /// The step's scalars, after run() has covered the parameter.
  [[nodiscard]] RuleScalars scalars() const;

 private:
  RuleId rule_;
  RuleScalars scalars_;
  MeasureKernel kernel_;
  ResolvedUpdate update_;
  std::vector<float> weight_sums_;
  std::vector<float> update_sums_;
};

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_MEASURE_H_
