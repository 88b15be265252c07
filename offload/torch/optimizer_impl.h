// What is behind CPUOffloadOptimizer: its engine, and which parameter of which group is which of
// the engine's. Included by the files that implement the class only.
#ifndef OUTBOARD_OFFLOAD_TORCH_OPTIMIZER_IMPL_H_
#define OUTBOARD_OFFLOAD_TORCH_OPTIMIZER_IMPL_H_

#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "offload/torch/checkpoint_file.h"
#include "offload/torch/generic_update.h"
#include "offload/torch/tensor_engine.h"
#include "outboard/torch/cpu_offload_optimizer.h"

namespace outboard {

struct CPUOffloadOptimizer::Impl {
  explicit Impl(CPUOffloadOptions given);

  /// The engine's index. Throws Error(kValue) for a tensor that is no parameter.
  [[nodiscard]] size_t index_of(const at::Tensor& tensor) const;
  /// The name that options.names has for a tensor, or its place in the groups.
  [[nodiscard]] std::string name_of(const at::Tensor& tensor, size_t group, size_t position) const;
  [[nodiscard]] FormatWish format_of(const std::string& name) const;
  /// The engine's indices of the parameters whose names fit.
  [[nodiscard]] std::vector<size_t> matching(const std::string& pattern) const;
  /// Throws Error for a group that cannot be taken: empty, with duplicates, of another rule.
  void check_group(const torch::optim::OptimizerParamGroup& group) const;
  /// The rule of parameters that can be factored, if they are to be; else that of all. Both take
  /// the same hyper-parameters.
  [[nodiscard]] RuleId rule_of_matrices() const;
  /// Throws Error(kValue) for options that do not go with factored_second_moment.
  void check_factored(const torch::optim::OptimizerOptions& group_options) const;
  /// Gives the engine group `number`, which is the next one it does not have.
  void register_group(const torch::optim::OptimizerParamGroup& group);
  /// Registers groups that came through the base class. Throws Error(kState) if a group's
  /// parameters were exchanged. Returns the group of each parameter, by the engine's index.
  std::vector<uint32_t> update_groups(const ParamGroups& groups);

  [[nodiscard]] std::vector<std::vector<double>> hyper_of_groups(const ParamGroups& groups) const;
  /// The norm to clip the coming step to; 0: none.
  [[nodiscard]] double max_norm() const;
  void warn();

  /// The parameter's state, native or generic.
  [[nodiscard]] TensorMap state(size_t parameter, StateLayout layout);
  /// Everything that a checkpoint holds, tensors as live views.
  [[nodiscard]] Snapshot snapshot(const ParamGroups& groups, StateLayout layout);
  /// Checks all of `saved`, then takes it over, options of `groups` included.
  void restore(const Snapshot& saved, ParamGroups& groups);

  const CPUOffloadOptions options;
  TensorEngine engine;
  std::optional<RuleId> rule;              // none: generic
  std::unique_ptr<GenericUpdate> generic;  // after the engine: it refers to it
  std::unordered_map<const c10::TensorImpl*, size_t> indices;
  std::vector<std::string> parameter_names;  // by the engine's index
  std::vector<RuleId> parameter_rules;       // by the engine's index; none if generic
  std::vector<size_t> group_sizes;           // of the groups that the engine has
  double clip_once = 0;
  int accumulating = 0;
  bool is_capturable = false;

 private:
  /// Throws Error(kValue) for AdamW's states in the place of AdamWFactored's, or the reverse.
  void check_saved_kind(const TensorMap& state, size_t parameter) const;
  void check_saved(const Snapshot& saved, const ParamGroups& groups) const;
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> saved_options(
      const Snapshot& saved, const ParamGroups& groups) const;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_OPTIMIZER_IMPL_H_
