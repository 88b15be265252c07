// torch's option structs and the catalogue's lists of hyper-parameters: each as the other. Values
// only; no tensors.
#ifndef OUTBOARD_OFFLOAD_TORCH_HYPER_H_
#define OUTBOARD_OFFLOAD_TORCH_HYPER_H_

#include <torch/optim/optimizer.h>

#include <span>
#include <vector>

#include "outboard/rule.h"

namespace outboard {

/// The native rule that an option struct stands for. Throws Error(kType) for other structs.
[[nodiscard]] RuleId rule_of(const torch::optim::OptimizerOptions& options);

/// The options' values in the rule's catalogue order; what the struct does not hold (maximize) is
/// the default.
[[nodiscard]] std::vector<double> hyper_of(const torch::optim::OptimizerOptions& options);

/// The inverse of hyper_of(). Throws Error(kValue) for a value that the struct cannot hold.
void set_hyper(torch::optim::OptimizerOptions& options, std::span<const double> hyper);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_HYPER_H_
