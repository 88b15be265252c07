// Tensors, hooks and versions; see tensor_engine.h. State dict entries are in tensor_state.cc.
#include "offload/torch/tensor_engine.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {

/// A post hook on the parameter's gradient accumulator. The node is kept alive, else autograd would
/// make a new one without the hook. The owner may go first: the hook then does nothing.
class TensorEngine::Hook {
 public:
  static std::shared_ptr<Hook> install(TensorEngine* engine, size_t parameter,
                                       const at::Tensor& tensor) {
    auto hook = std::make_shared<Hook>();
    hook->engine_ = engine;
    hook->node_ = torch::autograd::impl::grad_accumulator(tensor);
    hook->key_ =
        hook->node_->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
            [hook, parameter](const auto& outputs, const auto&) {
              const std::lock_guard lock(hook->mutex_);
              if (hook->engine_ != nullptr) hook->engine_->on_gradient(parameter);
              return outputs;
            }));
    return hook;
  }

  void remove() {
    node_->del_post_hook(key_);
    const std::lock_guard lock(mutex_);
    engine_ = nullptr;
  }

 private:
  std::mutex mutex_;
  TensorEngine* engine_ = nullptr;
  std::shared_ptr<torch::autograd::Node> node_;
  uintptr_t key_ = 0;
};

TensorEngine::TensorEngine(const EngineOptions& options,
                           std::optional<SimulatedDeviceOptions> simulated)
    : options_(options), simulated_(simulated) {}

TensorEngine::~TensorEngine() {
  for (Slot& slot : slots_) {
    if (slot.hook) slot.hook->remove();
  }
  // Order: the slots may be the last to hold the weights, which updates under way write to; and
  // views of state may keep the engine alive beyond them.
  try {
    if (engine_) engine_->synchronize();
  } catch (const std::exception&) {
    // Said already, or nobody is left to hear it.
  }
}

bool TensorEngine::is_offloaded(const Slot& slot) const {
  return simulated_.has_value() || slot.tensor.is_cuda();
}

ComputeStream TensorEngine::stream() const {
  if (!device_ || !device_->is_cuda()) return nullptr;
  const c10::impl::VirtualGuardImpl guard(device_->type());
  return guard.getStreamNativeHandle(guard.getStream(*device_));
}

void TensorEngine::start_engine(const TensorGroup& group) {
  if (simulated_) {
    device_ = at::Device(at::kCPU);
    engine_ = std::make_shared<Engine>(options_, make_simulated_device(*simulated_));
    return;
  }
  for (const at::Tensor& tensor : group.tensors) {
    if (tensor.is_cuda()) device_ = tensor.device();
  }
  if (!device_) {
    engine_ = std::make_shared<Engine>(options_, nullptr);
    return;
  }
  // Resident state comes from torch's allocator, so that it shows in torch's memory statistics.
  auto allocate = [device = *device_](size_t bytes) -> std::shared_ptr<void> {
    auto memory = std::make_shared<at::Tensor>(at::zeros(
        {static_cast<int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).device(device)));
    return {memory, memory->data_ptr()};
  };
  engine_ = std::make_shared<Engine>(options_, make_cuda_device(device_->index()), allocate);
}

ParameterSpec TensorEngine::spec_of(const TensorGroup& group, size_t i) const {
  const at::Tensor& tensor = group.tensors[i];
  const std::string& name = group.names[i];
  check_parameter(tensor, name);
  const bool on_device = simulated_.has_value() || tensor.is_cuda();
  if (on_device && device_ && tensor.device() != *device_) {
    fail(ErrorKind::kValue, kWho, "parameter ", name, " is on ", tensor.device().str(),
         " and others are on ", device_->str(), "; use one optimizer per device");
  }
  if (on_device && !device_) {
    fail(ErrorKind::kValue, kWho, "parameter ", name, " is on ", tensor.device().str(),
         " but this optimizer was made for CPU parameters; make a new optimizer");
  }
  ParameterSpec spec;
  spec.name = name;
  spec.weight = tensor.data_ptr();
  spec.memory = on_device ? Memory::kDevice : Memory::kHost;
  spec.type = dtype_of(tensor.scalar_type(), name);
  spec.elements = static_cast<size_t>(tensor.numel());
  spec.placement = on_device ? group.placements.at(i) : Placement::kHost;
  const std::string& rule_name = group.rules.at(i);
  if (rule_name.empty() && spec.placement == Placement::kStreamed) {
    fail(ErrorKind::kValue, kWho, "parameter ", name,
         " cannot be streamed: its optimizer class has no native rule; use the placement \"host\"");
  }
  spec.master_format = master_named(group.master, spec.type, !rule_name.empty(), name);
  if (!rule_name.empty()) {
    const RuleInfo& rule = rule_named(rule_name);
    spec.rule = rule.id;
    if (rule.factor_scalars != nullptr) {
      check_matrix(tensor, name);
      spec.rows = static_cast<size_t>(tensor.size(0));
    }
    spec.hyper = group.hyper;
    spec.formats =
        formats_of(rule, group.state_formats.at(i), spec.elements, group.min_quantized_elements);
  } else {
    check_generic_format(group.state_formats.at(i), name);
  }
  return spec;
}

size_t TensorEngine::add_parameters(const TensorGroup& group) {
  if (!engine_) start_engine(group);
  std::vector<ParameterSpec> specs;
  for (size_t i = 0; i < group.tensors.size(); ++i) {
    specs.push_back(spec_of(group, i));
    if (is_capturable_) check_capturable(specs.back(), group.tensors[i]);
  }
  const size_t first = engine_->add_parameters(std::move(specs), stream());
  for (size_t i = 0; i < group.tensors.size(); ++i) {
    const at::Tensor& tensor = group.tensors[i];
    slots_.push_back({.tensor = tensor,
                      .name = group.names[i],
                      .weight = tensor.data_ptr(),
                      .weight_version = tensor._version(),
                      .is_streamed = placement(first + i) == "streamed"});
  }
  if (is_capturable_) start_capturable();
  refresh_hooks();
  return first;
}

void TensorEngine::refresh_hooks() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    const bool needs_hook = is_offloaded(slot) && slot.tensor.requires_grad() && !slot.hook;
    if (needs_hook && placement(i) != "resident") slot.hook = Hook::install(this, i, slot.tensor);
  }
}

void TensorEngine::on_gradient(size_t parameter) {
  // Runs inside backward, on a thread of autograd: a failure is kept for the caller of the next
  // step.
  try {
    Slot& slot = slots_[parameter];
    const at::Tensor& gradient = slot.tensor.grad();
    if (!gradient.defined() || !is_last_backward(slot)) return;
    send(parameter, gradient, false);
    // The engine holds the gradient until it was read; nobody else needs it.
    if (engine_->owns_gradient(parameter)) slot.tensor.mutable_grad().reset();
  } catch (...) {
    const std::lock_guard lock(hook_mutex_);
    if (!hook_failure_) hook_failure_ = std::current_exception();
  }
}

bool TensorEngine::is_last_backward(Slot& slot) const {
  // What the host adds up is sent each time; what autograd adds up, only when it is whole.
  if (options_.offload_gradients && !slot.is_streamed) return true;
  return ++slot.backwards >= accumulation_steps_ && !is_accumulating_;
}

void TensorEngine::rethrow_hook_failure() {
  std::exception_ptr failure;
  {
    const std::lock_guard lock(hook_mutex_);
    failure = std::exchange(hook_failure_, nullptr);
  }
  if (!failure) return;
  discard_gradients();
  std::rethrow_exception(failure);
}

void TensorEngine::check_gradient(const Slot& slot, const at::Tensor& gradient) const {
  if (gradient.layout() != at::kStrided) {
    fail(ErrorKind::kValue, kWho, "the gradient of ", slot.name, " is sparse; outboard updates ",
         "dense gradients only: make the layer dense (for example nn.Embedding(sparse=False))");
  }
  if (gradient.sizes() != slot.tensor.sizes() ||
      gradient.scalar_type() != slot.tensor.scalar_type() ||
      gradient.device() != slot.tensor.device()) {
    fail(ErrorKind::kValue, kWho, "the gradient of ", slot.name, " is ", describe(gradient),
         " but the parameter is ", describe(slot.tensor), "; they must agree");
  }
}

at::Tensor TensorEngine::same_order(const Slot& slot, const at::Tensor& gradient) {
  // Host arrays are in the weight's own memory order.
  if (gradient.strides() == slot.tensor.strides()) return gradient.detach();
  return at::empty_like(slot.tensor).copy_(gradient.detach());
}

void TensorEngine::send(size_t parameter, const at::Tensor& gradient, bool is_revision) {
  Slot& slot = slots_[parameter];
  check_gradient(slot, gradient);
  at::Tensor source = same_order(slot, gradient);
  const void* data = source.data_ptr();
  engine_->gradient_ready(parameter,
                          {.data = data,
                           .owner = std::make_shared<at::Tensor>(std::move(source)),
                           .is_revision = is_revision,
                           .is_last = !is_accumulating_},
                          stream());
  if (engine_->owns_gradient(parameter)) {
    slot.sent_gradient.reset();
    return;
  }
  slot.sent_gradient = gradient;
  slot.sent_version = gradient._version();
}

void TensorEngine::send_pending(bool looks_at_values) {
  // Versions show most edits. Some writers bypass them (a gradient scaler's fused unscale, .data):
  // where the step waits for all gradients anyway, their sums of squares are compared too.
  std::vector<SentGradient> sent;
  std::vector<at::Tensor> kept;
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    const at::Tensor& gradient = slot.tensor.grad();
    if (!gradient.defined()) {
      if (engine_->has_gradient(i) && !engine_->owns_gradient(i)) engine_->forget_gradient(i);
      continue;
    }
    const bool is_sent = slot.sent_gradient.is_same(gradient) &&
                         slot.sent_version == gradient._version() && engine_->has_gradient(i);
    if (is_sent) {
      // Gradients that were given away are nobody's to edit, also where they still lie in .grad.
      if (slot.hook == nullptr || options_.offload_gradients) continue;
      kept.push_back(same_order(slot, gradient));
      sent.push_back({i, kept.back().data_ptr()});
      continue;
    }
    const bool is_revision = engine_->has_gradient(i) && !engine_->owns_gradient(i);
    if (is_revision && slot.hook != nullptr) ++resent_gradients_;
    send(i, gradient, is_revision);
    if (engine_->owns_gradient(i)) slot.tensor.mutable_grad().reset();
  }
  if (!looks_at_values) return;
  for (const size_t i : engine_->changed_gradients(sent, stream())) {
    ++resent_gradients_;
    send(i, slots_[i].tensor.grad(), true);
  }
}

bool TensorEngine::has_changed(const Slot& slot) const {
  return slot.tensor.data_ptr() != slot.weight || slot.tensor._version() != slot.weight_version;
}

void TensorEngine::notice_changed_weights() {
  std::vector<size_t> changed;
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    const at::Tensor& tensor = slot.tensor;
    if (!has_changed(slot)) continue;
    const bool has_moved = tensor.data_ptr() != slot.weight;
    const ParameterSpec& spec = *engine_->view(i).spec;
    const bool is_same_kind =
        static_cast<size_t>(tensor.numel()) == spec.elements &&
        tensor.scalar_type() == scalar_type_of(spec.type) && is_dense(tensor) &&
        (spec.rows == 0 || is_matrix(tensor)) &&
        (simulated_.has_value() || tensor.is_cuda()) == (spec.memory == Memory::kDevice);
    if (!is_same_kind) {
      fail(ErrorKind::kValue, kWho, "parameter ", slot.name, " is now ", describe(tensor),
           " but was registered with ", spec.elements, " elements of ", name_of(spec.type),
           "; make the optimizer after moving, resizing or converting the model");
    }
    if (has_moved) engine_->set_weight(i, tensor.data_ptr());
    slot.weight = tensor.data_ptr();
    slot.weight_version = tensor._version();
    changed.push_back(i);
  }
  if (!changed.empty()) engine_->reload_weights(changed, stream());
}

bool TensorEngine::begin_step(std::vector<std::vector<double>> hyper,
                              std::vector<uint32_t> group_of, double max_gradient_norm,
                              const at::Tensor& grad_scale, const at::Tensor& found_inf) {
  rethrow_hook_failure();
  refresh_hooks();
  notice_changed_weights();
  const bool waits_for_all = options_.skip_nonfinite || max_gradient_norm > 0 ||
                             grad_scale.defined() || found_inf.defined();
  send_pending(waits_for_all);
  const LossScale scale(grad_scale, found_inf);
  return engine_->begin_step({.hyper = std::move(hyper),
                              .group_of = std::move(group_of),
                              .max_gradient_norm = max_gradient_norm,
                              .loss_scale = scale.loss_scale(),
                              .found_inf = scale.found_inf(),
                              .scalars_memory = scale.memory()},
                             stream());
}

void TensorEngine::finish_step() {
  const std::vector<size_t> updated = engine_->active_parameters();
  for (Slot& slot : slots_) {
    slot.sent_gradient.reset();
    slot.backwards = 0;
  }
  engine_->finish_step(stream());
  for (const size_t i : updated) {
    // As torch's own optimizers do: a backward through values saved before the step then fails
    // loudly.
    Slot& slot = slots_[i];
    // The engine holds what is still being read.
    if (slot.is_streamed && options_.offload_gradients) slot.tensor.mutable_grad().reset();
    if (!slot.tensor.is_inference()) torch::autograd::impl::bump_version(slot.tensor);
    slot.weight_version = slot.tensor._version();
  }
}

std::vector<size_t> TensorEngine::active_parameters() const { return engine_->active_parameters(); }

double TensorEngine::gradient_norm(const at::Tensor& grad_scale) {
  rethrow_hook_failure();
  send_pending(true);
  const LossScale scale(grad_scale, {});
  return engine_->gradient_norm(
      {.loss_scale = scale.loss_scale(), .scalars_memory = scale.memory()}, stream());
}

void TensorEngine::wait_weights(std::span<const size_t> parameters) {
  if (!is_updating()) return;
  std::vector<size_t> all;
  if (parameters.empty()) {
    for (size_t i = 0; i < slots_.size(); ++i) all.push_back(i);
    parameters = all;
  }
  engine_->wait_weights(parameters, stream());
}

void TensorEngine::set_use_order(std::span<const size_t> parameters) {
  if (engine_) engine_->set_use_order(parameters);
}

void TensorEngine::set_schedule(Schedule schedule) {
  options_.schedule = schedule;
  if (engine_) engine_->set_schedule(schedule);
}

void TensorEngine::announce_step(std::vector<std::vector<double>> hyper,
                                 std::vector<uint32_t> group_of, double max_gradient_norm) {
  if (!engine_) return;
  engine_->announce_step({.hyper = std::move(hyper),
                          .group_of = std::move(group_of),
                          .max_gradient_norm = max_gradient_norm},
                         stream());
}

void TensorEngine::start_trace() {
  if (engine_) engine_->start_trace(stream());
}

std::vector<TraceSpan> TensorEngine::stop_trace() {
  return engine_ ? engine_->stop_trace() : std::vector<TraceSpan>{};
}

void TensorEngine::discard_gradients() {
  for (Slot& slot : slots_) {
    slot.sent_gradient.reset();
    slot.backwards = 0;
  }
  if (engine_) engine_->forget_gradients();
}

void TensorEngine::synchronize() {
  if (!engine_) return;
  rethrow_hook_failure();
  engine_->synchronize();
  note_steps();
}

at::Tensor TensorEngine::host_gradient(size_t parameter) {
  engine_->wait_gradient(parameter);
  const ParameterView view = engine_->view(parameter);
  const at::Tensor stored =
      view_of(parameter, const_cast<void*>(view.gradient), scalar_type_of(view.gradient_type));
  return stored.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true)
      .mul_(engine_->gradient_scale());
}

at::Tensor TensorEngine::host_weight(size_t parameter) {
  const ParameterView view = engine_->view(parameter);
  void* master = view.master != nullptr ? view.master : view.host_weight;
  return view_of(parameter, master, at::kFloat);
}

void TensorEngine::return_weight(size_t parameter) {
  const ParameterView view = engine_->view(parameter);
  if (view.master != nullptr) {
    view_of(parameter, view.host_weight, scalar_type_of(view.spec->type))
        .copy_(host_weight(parameter));
  }
  engine_->return_weight(parameter);
}

void TensorEngine::set_placements(const std::vector<PlacementChange>& changes) {
  if (!engine_) return;
  rethrow_hook_failure();
  notice_changed_weights();
  engine_->set_placements(changes, stream());
  for (const PlacementChange& change : changes) {
    slots_[change.parameter].is_streamed = placement(change.parameter) == "streamed";
  }
}

std::string TensorEngine::placement(size_t parameter) const {
  const ParameterSpec& spec = *engine_->view(parameter).spec;
  if (spec.memory == Memory::kHost) return "cpu";
  if (spec.placement == Placement::kStreamed) return "streamed";
  return spec.placement == Placement::kResident ? "resident" : "host";
}

std::string TensorEngine::master_format(size_t parameter) const {
  return std::string(name_of(engine_->view(parameter).spec->master_format));
}

MemoryStats TensorEngine::memory() const { return engine_ ? engine_->memory() : MemoryStats{}; }

StepStats TensorEngine::stats() const {
  StepStats stats = engine_ ? engine_->stats() : StepStats{};
  stats.resent_gradients = resent_gradients_;
  return stats;
}

std::vector<std::string> TensorEngine::take_warnings() {
  return engine_ ? engine_->take_warnings() : std::vector<std::string>{};
}

}  // namespace outboard
