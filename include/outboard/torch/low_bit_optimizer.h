// The libtorch face for state in few bits beside the weights: CPUOffloadOptimizer with nothing
// offloaded, and the options that are left then.
#ifndef OUTBOARD_TORCH_LOW_BIT_OPTIMIZER_H_
#define OUTBOARD_TORCH_LOW_BIT_OPTIMIZER_H_

#include "outboard/torch/cpu_offload_optimizer.h"

namespace outboard {

/// What LowBitOptimizer is made with, beside the options of the base optimizer. Those of
/// CPUOffloadOptions mean the same.
struct LowBitOptions {
  std::string state_format = "8bit";
  int64_t block_size = 0;
  int64_t min_quantized_elements = 4096;
  std::vector<StateFormatOf> state_formats = {};
  torch::OrderedDict<std::string, torch::Tensor> names{};
  std::string master = "auto";
  bool factored_second_moment = false;
  double max_gradient_norm = 0;
  bool skip_nonfinite = false;
  int threads = 0;
  uint64_t seed = 0;
  /// step() can be captured in a CUDA graph: every parameter lies on one CUDA device, and there is
  /// neither max_gradient_norm nor skip_nonfinite. Results are the same bits.
  bool capturable = false;
  std::optional<SimulatedDeviceOptions> simulated_device = {};

  /// The same for an optimizer that keeps every parameter where it is.
  [[nodiscard]] CPUOffloadOptions without_offload() const;
};

/// Keeps optimizer state in few bits, where the parameters are: CUDA parameters are updated on
/// their device by one launch per group of formats, with no masters and no gradients on the host;
/// CPU parameters are updated in place. All parameters of one optimizer lie on one GPU or on the
/// CPU. step() does not synchronise the device unless max_gradient_norm, clip_grad_norm_() or
/// skip_nonfinite need the norm. Everything else is CPUOffloadOptimizer's.
///
/// With `capturable` a captured step() reads hyper-parameters and step counts from device memory,
/// so that every replay is a step of its own. Take one step before the capture; gradients keep
/// their addresses while a graph is replayed. The optimizer must outlive the last replay.
class LowBitOptimizer : public CPUOffloadOptimizer {
 public:
  /// The rule is chosen by the type of `base`. Throws as CPUOffloadOptimizer's constructor.
  template <std::derived_from<torch::optim::OptimizerOptions> Base>
  LowBitOptimizer(ParamGroups groups, Base base, const LowBitOptions& options = {})
      : CPUOffloadOptimizer(std::move(groups), std::move(base), options.without_offload()) {
    if (options.capturable) make_capturable();
  }
  template <std::derived_from<torch::optim::OptimizerOptions> Base>
  LowBitOptimizer(std::vector<torch::Tensor> parameters, Base base,
                  const LowBitOptions& options = {})
      : CPUOffloadOptimizer(std::move(parameters), std::move(base), options.without_offload()) {
    if (options.capturable) make_capturable();
  }

  /// Of a capturable optimizer: sends the options of param_groups() to the device, for replays of a
  /// captured step that are enqueued on the current stream later. Weights that were written to
  /// since the last step are taken over as well. step() does both itself. Throws Error(kState)
  /// inside a capture.
  void update_hyperparameters() { send_hyperparameters(); }
};

}  // namespace outboard

#endif  // OUTBOARD_TORCH_LOW_BIT_OPTIMIZER_H_
