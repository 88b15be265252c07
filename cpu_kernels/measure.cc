// The first pass; see measure.h. Values are formed by the rule's kernel and summed by
// gradient_math.h.
#include "cpu_kernels/measure.h"

#include <algorithm>
#include <cassert>

#include "cpu_kernels/gradient_math.h"
#include "outboard/error.h"

namespace outboard::cpu {
namespace {

double total(const std::vector<float>& sums) {
  double sum = 0;
  for (const float value : sums) sum += static_cast<double>(value);
  return sum;
}

}  // namespace

ParameterNorms::ParameterNorms(const ParameterUpdate& update)
    : rule_(update.rule),
      scalars_(update.scalars),
      kernel_(measure_kernel(update.rule)),
      update_(update),
      weight_sums_(norm_segments(update.elements)),
      update_sums_(weight_sums_.size()) {
  if (kernel_ == nullptr) {
    fail(ErrorKind::kValue, "ParameterNorms", rule_info(rule_).name,
         " needs no norms; update its parameters without measuring them");
  }
}

void ParameterNorms::run(size_t first, size_t last) {
  assert(first % kNormSegmentElements == 0);
  alignas(64) float weight[kNormSegmentElements];
  alignas(64) float measured[kNormSegmentElements];
  for (size_t begin = first; begin < last; begin += kNormSegmentElements) {
    const size_t end = std::min(begin + kNormSegmentElements, last);
    update_.inspect(begin, end, [&](const RuleTile& tile, size_t at, size_t count) {
      kernel_(scalars_, tile, measured + (at - begin));
      std::copy_n(tile.weight, count, weight + (at - begin));
    });
    // What a tile holds beyond `end` is not summed.
    const size_t segment = begin / kNormSegmentElements;
    sum_of_squares(weight, DType::kF32, end - begin, &weight_sums_[segment]);
    sum_of_squares(measured, DType::kF32, end - begin, &update_sums_[segment]);
  }
}

RuleScalars ParameterNorms::scalars() const {
  return rule_info(rule_).with_norms(scalars_, total(weight_sums_), total(update_sums_));
}

}  // namespace outboard::cpu
