// Any torch::optim class on fp32 host masters: the update of parameters that have no native rule.
// Moves nothing itself; gradients and weights travel through the TensorEngine.
#ifndef OUTBOARD_OFFLOAD_TORCH_GENERIC_UPDATE_H_
#define OUTBOARD_OFFLOAD_TORCH_GENERIC_UPDATE_H_

#include <torch/optim/optimizer.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "offload/torch/tensor_engine.h"

namespace outboard {

/// The optimizers that the user's factory makes: one for each offloaded parameter, stepped as soon
/// as its gradient is there, so that its weight travels back while the next one is computed; one
/// for each group's parameters that stay where they are. Used by one thread.
class GenericUpdate {
 public:
  using Groups = std::vector<torch::optim::OptimizerParamGroup>;
  using Factory = std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor>)>;

  /// `engine` must outlive this. Throws Error(kValue) for a factory that makes nothing, or an
  /// optimizer that needs the whole model at once.
  GenericUpdate(Factory factory, TensorEngine& engine);

  /// The options that the factory's optimizers start with.
  [[nodiscard]] std::unique_ptr<torch::optim::OptimizerOptions> defaults() const;
  /// Takes parameters `first`, `first` + 1, ... of the engine, which are those of `group`.
  void add(size_t first, const torch::optim::OptimizerParamGroup& group);
  /// Updates every parameter that has a gradient, between the engine's begin_step and finish_step.
  /// `factor` multiplies gradients that stayed with their parameters.
  void step(const Groups& groups, const std::vector<uint32_t>& group_of, double factor);

  /// The optimizer's state of a parameter by name, as tensors (numbers as fp64 scalars; "step" as
  /// fp32), with the master of an offloaded one. Empty before its first update. Copies.
  [[nodiscard]] TensorMap state(size_t parameter) const;
  /// Throws Error(kValue) unless `state` is one that load() can take for this parameter.
  void check(size_t parameter, const TensorMap& state,
             const torch::optim::OptimizerOptions& options) const;
  /// Replaces the state (empty: resets it) by copies.
  void load(size_t parameter, const TensorMap& state,
            const torch::optim::OptimizerOptions& options);

 private:
  /// One parameter: the optimizer that holds it, and its tensor there.
  struct Member {
    std::shared_ptr<torch::optim::Optimizer> optimizer;
    at::Tensor tensor;
    bool is_on_host = false;
  };
  using State = torch::optim::OptimizerParamState;

  [[nodiscard]] std::shared_ptr<torch::optim::Optimizer> make(
      std::vector<at::Tensor> tensors, const torch::optim::OptimizerOptions* options) const;
  [[nodiscard]] std::unique_ptr<State> example_state(
      const torch::optim::OptimizerOptions& options) const;
  void step_on_host(size_t parameter, const torch::optim::OptimizerOptions& options);
  static void step_in_place(torch::optim::Optimizer& optimizer, double factor);

  Factory factory_;
  TensorEngine& engine_;
  std::map<size_t, Member> members_;
  std::map<size_t, std::shared_ptr<torch::optim::Optimizer>> in_place_;  // by group
  size_t groups_ = 0;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_GENERIC_UPDATE_H_
