// The libtorch face: a torch::optim::Optimizer whose masters and state live in host memory. What it
// is built from (tensors, hooks, the engine) stays behind a pointer.
#ifndef OUTBOARD_TORCH_CPU_OFFLOAD_OPTIMIZER_H_
#define OUTBOARD_TORCH_CPU_OFFLOAD_OPTIMIZER_H_

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/optimizer.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/ordered_dict.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "outboard/device.h"
#include "outboard/options.h"
#include "outboard/stats.h"

namespace outboard {

/// Options of the native rule Lion, which torch does not have. Beside these structs torch's
/// AdamWOptions, AdamOptions, SGDOptions, AdagradOptions and RMSpropOptions choose the native rule
/// of their name.
struct LionOptions : public torch::optim::OptimizerCloneableOptions<LionOptions> {
  explicit LionOptions(double lr = 1e-4) : lr_(lr) {}
  using betas_t = std::tuple<double, double>;
  TORCH_ARG(double, lr) = 1e-4;
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.99);
  TORCH_ARG(double, weight_decay) = 0;

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  [[nodiscard]] double get_lr() const override { return lr_; }
  void set_lr(double lr) override { lr_ = lr; }
};

/// Options of the native rule AdEMAMix. `betas` are those of the fast average, the squares and the
/// slow average; `t_alpha` and `t_beta3` the steps of their warm-ups, 0 for none.
struct AdEMAMixOptions : public torch::optim::OptimizerCloneableOptions<AdEMAMixOptions> {
  explicit AdEMAMixOptions(double lr = 1e-3) : lr_(lr) {}
  using betas_t = std::tuple<double, double, double>;
  TORCH_ARG(double, lr) = 1e-3;
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999, 0.9999);
  TORCH_ARG(double, alpha) = 5;
  TORCH_ARG(double, t_alpha) = 0;
  TORCH_ARG(double, t_beta3) = 0;
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 1e-2;

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  [[nodiscard]] double get_lr() const override { return lr_; }
  void set_lr(double lr) override { lr_ = lr; }
};

/// The state format of the parameters whose name fits `pattern`, with * and ? as in a shell.
struct StateFormatOf {
  std::string pattern;
  std::string state_format;
  int64_t block_size = 0;  ///< 0: the format's default
};

/// How checkpoints hold state in formats with blocks: as its codes and scales, which resume with
/// the same bits, or decoded to fp32, which torch and every other format can load.
enum class CheckpointState { kExact, kDecoded };

/// Options of the native rule LAMB; with `max_unorm` > 0 it is bitsandbytes' LAMB, AdamW with a
/// clipped update.
struct LAMBOptions : public torch::optim::OptimizerCloneableOptions<LAMBOptions> {
  explicit LAMBOptions(double lr = 1e-3) : lr_(lr) {}
  using betas_t = std::tuple<double, double>;
  TORCH_ARG(double, lr) = 1e-3;
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(double, max_unorm) = 0;

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  [[nodiscard]] double get_lr() const override { return lr_; }
  void set_lr(double lr) override { lr_ = lr; }
};

/// Options of the native rule LARS; with `max_unorm` > 0 it is bitsandbytes' LARS, SGD with a
/// clipped update.
struct LARSOptions : public torch::optim::OptimizerCloneableOptions<LARSOptions> {
  explicit LARSOptions(double lr = 1e-3) : lr_(lr) {}
  TORCH_ARG(double, lr) = 1e-3;
  TORCH_ARG(double, momentum) = 0.9;
  TORCH_ARG(double, dampening) = 0;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, nesterov) = false;
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, max_unorm) = 0;
  TORCH_ARG(double, trust_coefficient) = 1e-3;

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  [[nodiscard]] double get_lr() const override { return lr_; }
  void set_lr(double lr) override { lr_ = lr; }
};

/// What CPUOffloadOptimizer is made with, beside the options of the base optimizer.
struct CPUOffloadOptions {
  /// Device gradients are freed as soon as they are copied; further backwards are added in fp32 on
  /// the host. Clip with max_gradient_norm or clip_grad_norm_() then.
  bool offload_gradients = false;
  /// How state is stored: "fp32", "bf16", "8bit", "4bit", "fp8" and so on, or "a/b": signed state
  /// as in a, second moments as in b.
  std::string state_format = "fp32";
  int64_t block_size = 0;                 ///< elements that share a scale; 0: the format's default
  int64_t min_quantized_elements = 4096;  ///< smaller parameters keep fp32 state
  /// Other formats by name; the first pattern that fits counts. Each must fit a parameter.
  std::vector<StateFormatOf> state_formats = {};
  /// model->named_parameters(): names for those patterns and for messages.
  torch::OrderedDict<std::string, torch::Tensor> names{};
  /// "auto" (split for bf16 weights, fp32 for fp16), "split", "split8" (24 bits of fp32, one byte
  /// less; stochastic rounding), "fp32", or "none" (stochastic rounding).
  std::string master = "auto";
  /// With AdamWOptions: parameters of two and more dimensions keep a mean for each row and column
  /// (size(0) rows) in the place of exp_avg_sq; those of fewer, or not contiguous, keep exp_avg_sq.
  bool factored_second_moment = false;
  double max_gradient_norm = 0;         ///< clips every step's global norm; 0: off
  int64_t min_offload_elements = 4096;  ///< smaller parameters stay resident on their device
  bool skip_nonfinite = true;  ///< a step with an Inf or NaN gradient changes nothing, is counted
  int threads = 0;             ///< compute threads of the host update; 0: chosen from the cores
  bool pin_memory = true;      ///< register transfer memory with CUDA
  uint64_t seed = 0;           ///< of stochastic rounding
  size_t chunk_elements = size_t{16} << 20;  ///< the unit of pipeline work
  std::vector<torch::Tensor> resident = {};  ///< parameters that stay resident whatever their size
  /// Who updates the others: kHost the CPU; kStreamed the GPU, through which state passes from and
  /// to host memory while gradients stay there (in the type and sums that autograd gives them, also
  /// with offload_gradients).
  Placement placement = Placement::kHost;
  int64_t min_stream_elements = 65536;  ///< of kStreamed, smaller parameters stay resident
  /// When updates run, with the same results; weights in the order of registration, as a forward
  /// is expected to use them. Other than kAtStep: call before_forward() before each
  /// forward and whenever else weights are read; or wait() for each part of the model on its own.
  Schedule schedule = Schedule::kAtStep;
  /// Treats CPU parameters as if they lay on this fake device: the whole pipeline without a GPU.
  std::optional<SimulatedDeviceOptions> simulated_device = {};
};

/// What stats() reports.
struct OffloadStats {
  MemoryStats memory;
  StepStats step;
};

/// Trains CUDA parameters with master weights and optimizer state in host memory. Gradients are
/// copied to the host while backward runs; step() updates there chunk by chunk and returns once the
/// last weight copy is enqueued: the current CUDA stream waits for it, the device is not
/// synchronised. CPU parameters are updated in place.
///
/// Options are read from param_groups() at every step, so torch's LR schedulers work. zero_grad()
/// and add_param_group() of the base class are not virtual: call them on this class. state() of the
/// base class stays empty: see state_of(). Used by one thread at a time. Failures are
/// outboard::Error.
class CPUOffloadOptimizer : public torch::optim::Optimizer {
 public:
  using ParamGroups = std::vector<torch::optim::OptimizerParamGroup>;
  /// Makes any other optimizer over the given tensors. Called for the fp32 host master of each
  /// offloaded parameter alone, and for probes of a few elements.
  using Factory =
      std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<torch::Tensor>)>;

  /// One native rule, chosen by the type of `base`: torch's AdamWOptions, AdamOptions, SGDOptions,
  /// AdagradOptions, RMSpropOptions, or LionOptions, AdEMAMixOptions, LAMBOptions, LARSOptions.
  /// Groups without options get `base`. Allocates host memory and reads the weights (blocks).
  /// Throws Error for wrong values (kValue; among them factored_second_moment with other options
  /// than AdamW's, or with amsgrad), types (kType) or memory that cannot be had (kMemory).
  template <std::derived_from<torch::optim::OptimizerOptions> Base>
  CPUOffloadOptimizer(ParamGroups groups, Base base, CPUOffloadOptions options = {})
      : CPUOffloadOptimizer(std::move(groups), std::make_unique<Base>(std::move(base)), nullptr,
                            std::move(options)) {}
  template <std::derived_from<torch::optim::OptimizerOptions> Base>
  CPUOffloadOptimizer(std::vector<torch::Tensor> parameters, Base base,
                      CPUOffloadOptions options = {})
      : CPUOffloadOptimizer(single(std::move(parameters)), std::move(base), std::move(options)) {}

  /// Any other class of torch::optim, or a user's own: its step() runs on fp32 host masters, one
  /// parameter at a time, while other copies are under way. Groups hold its options.
  CPUOffloadOptimizer(ParamGroups groups, Factory factory, CPUOffloadOptions options = {});
  CPUOffloadOptimizer(std::vector<torch::Tensor> parameters, Factory factory,
                      CPUOffloadOptions options = {})
      : CPUOffloadOptimizer(single(std::move(parameters)), std::move(factory), std::move(options)) {
  }

  /// Removes the hooks and waits for everything under way.
  ~CPUOffloadOptimizer() override;
  CPUOffloadOptimizer(CPUOffloadOptimizer&&) = delete;
  CPUOffloadOptimizer& operator=(CPUOffloadOptimizer&&) = delete;

  /// Updates every parameter that has a gradient; returns the closure's loss. An error of the
  /// driver thread is thrown here or by the next call.
  torch::Tensor step(LossClosure closure = nullptr) override;
  /// As torch's; also forgets gradients that were copied but not used.
  void zero_grad(bool set_to_none = true);
  /// Throws Error(kValue) for duplicates, an empty group or values out of range; nothing was added
  /// then.
  void add_param_group(const torch::optim::OptimizerParamGroup& group);

  /// Clips the coming step to `max_norm`; returns the gradients' global 2-norm before it. Blocks
  /// until they have arrived. The gradients themselves stay as they are.
  double clip_grad_norm_(double max_norm);
  /// To be called before each forward of training: says what the coming step will be made with, so
  /// that at kInBackward updates can begin when gradients appear, and makes the current stream wait
  /// for `parameters` (empty: for all).
  void before_forward(const std::vector<torch::Tensor>& parameters = {});
  /// Makes the current stream wait until these weights (empty: all) are current. Blocks until the
  /// copies it has to wait for are enqueued; cheap when there are none.
  void wait(const std::vector<torch::Tensor>& parameters = {});
  /// Blocks until every weight on the device is current. Training never needs it.
  void synchronize();
  /// Bytes by kind, and the last step in seconds.
  [[nodiscard]] OffloadStats stats() const;

  /// Ends what accumulate() began.
  class [[nodiscard]] Accumulation {
   public:
    ~Accumulation();
    Accumulation(const Accumulation&) = delete;
    Accumulation& operator=(const Accumulation&) = delete;

   private:
    friend class CPUOffloadOptimizer;
    explicit Accumulation(CPUOffloadOptimizer& optimizer);
    CPUOffloadOptimizer& optimizer_;
  };
  /// While the result lives, backwards are not the last ones of a step: nothing is sent that the
  /// next one changes again. Optional; results are the same without it.
  Accumulation accumulate() { return Accumulation(*this); }

  /// Stores the state of the parameters whose names fit `pattern` in another format from now on and
  /// converts what it holds. Host memory that becomes free is kept for the same parameter's later
  /// formats. Throws Error(kValue) before anything changed.
  void convert_state(const std::string& state_format, int64_t block_size = 0,
                     const std::string& pattern = "*");
  /// "fp32", or for example "sym8/128, root8/128": formats and their block sizes.
  [[nodiscard]] std::string state_format_of(const torch::Tensor& parameter) const;

  /// Live views on a parameter's state under torch's names (copies in fp32 of state in formats with
  /// blocks), with "step" and, where one is kept, "master". Empty before its first update. Waits
  /// for updates under way.
  [[nodiscard]] std::map<std::string, torch::Tensor> state_of(const torch::Tensor& parameter);
  /// "host", "streamed", "resident" or "cpu".
  [[nodiscard]] std::string placement_of(const torch::Tensor& parameter) const;

  /// torch::save and torch::load. Copies everything in memory: save_checkpoint() does not.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

  /// Writes the file that Python's optimizer.save() writes: torch.load(weights_only=True) reads it.
  /// `path` shows the old version or the whole new one at any moment. Streams, so that memory does
  /// not grow. Throws Error(kFile).
  void save_checkpoint(const std::string& path, CheckpointState state = CheckpointState::kExact);
  /// Reads what save_checkpoint(), outboard's Python face, or torch.save of a torch optimizer's
  /// state_dict() has written. Every checksum, shape and type is checked before anything changes.
  /// Throws Error(kFile) for a damaged file, Error(kValue) for one of another model.
  void load_checkpoint(const std::string& path);

 protected:
  /// What LowBitOptimizer offers; see there.
  void make_capturable();
  void send_hyperparameters();

 private:
  struct Impl;
  CPUOffloadOptimizer(ParamGroups groups, std::unique_ptr<torch::optim::OptimizerOptions> base,
                      Factory factory, CPUOffloadOptions options);
  static ParamGroups single(std::vector<torch::Tensor> parameters);

  std::unique_ptr<Impl> impl_;
};

}  // namespace outboard

#endif  // OUTBOARD_TORCH_CPU_OFFLOAD_OPTIMIZER_H_
