// The public core: checks what callers give, and hands it to the store and the pipeline.
#include "outboard/engine.h"

#include "offload/pipeline.h"
#include "offload/state_store.h"
#include "outboard/error.h"

namespace outboard {

namespace {

constexpr std::string_view kWho = "Engine";
// Far above every memory, far below where byte counts overflow.
constexpr size_t kMostElements = size_t{1} << 48;

void check_factors(const ParameterSpec& spec) {
  const RuleInfo& rule = rule_info(*spec.rule);
  if (rule.factor_scalars == nullptr || spec.elements == 0) return;
  if (spec.rows == 0 || spec.elements % spec.rows != 0) {
    fail(ErrorKind::kValue, kWho, spec.name, " has ", spec.elements, " elements and ", spec.rows,
         " rows, and ", rule.name, " needs a matrix; give rows that divide the elements");
  }
  for (size_t i = 0; i < rule.states.size(); ++i) {
    if (rule.states[i].shape == StateShape::kElements || spec.formats[i] == StateFormat{}) continue;
    fail(ErrorKind::kValue, kWho, "the state ", rule.states[i].key, " of ", spec.name, " is to be ",
         format_info(spec.formats[i].format).name,
         ", and row and column means are kept in fp32; give f32");
  }
}

void check_spec(const ParameterSpec& spec, const Device* device) {
  if (spec.memory == Memory::kDevice && device == nullptr) {
    fail(ErrorKind::kValue, kWho, spec.name, " is in device memory but the engine has no device; ",
         "give Engine the device of the model");
  }
  if (spec.elements > kMostElements) {
    fail(ErrorKind::kMemory, kWho, spec.name, " has ", spec.elements, " elements; at most ",
         kMostElements, " fit into memory");
  }
  if (spec.memory == Memory::kHost && spec.placement != Placement::kHost) {
    fail(ErrorKind::kValue, kWho, spec.name,
         " is in host memory and cannot be resident on a device; ", "use Placement::kHost");
  }
  const bool fits = spec.master_format == MasterFormat::kF32      ? spec.type != DType::kF32
                    : spec.master_format == MasterFormat::kWeight ? spec.type == DType::kF32
                                                                  : spec.type == DType::kBF16;
  if (!fits) {
    fail(ErrorKind::kValue, kWho, spec.name, " of type ", name_of(spec.type),
         " cannot have this master; float32 is its own master, bfloat16 takes a split, split8, "
         "fp32 or no master, float16 an fp32 master");
  }
  if (spec.rule) check_hyper(rule_info(*spec.rule), spec.hyper, kWho);
  if (spec.rule) check_factors(spec);
}

}  // namespace

class Engine::Impl {
 public:
  Impl(const EngineOptions& options, std::shared_ptr<Device> device, Allocator allocator)
      : options(options),
        device(device),
        store(options, device, std::move(allocator)),
        pipeline(options, device, store) {}

  EngineOptions options;
  std::shared_ptr<Device> device;
  StateStore store;
  Pipeline pipeline;
  bool has_warned = false;
};

Engine::Engine(const EngineOptions& options, std::shared_ptr<Device> device, Allocator allocator) {
  if (options.slots < 1 || options.slot_bytes < kNormSegmentElements * sizeof(float)) {
    fail(ErrorKind::kValue, kWho, options.slots, " staging slots of ", options.slot_bytes,
         " bytes; at least 1 slot of ", kNormSegmentElements * sizeof(float), " bytes is needed");
  }
  if (options.threads < 0) {
    fail(ErrorKind::kValue, kWho, "threads is ", options.threads, "; give 0 (automatic) or more");
  }
  impl_ = std::make_unique<Impl>(options, std::move(device), std::move(allocator));
}

Engine::~Engine() = default;

size_t Engine::add_parameters(std::vector<ParameterSpec> specs, ComputeStream stream) {
  const size_t first = parameter_count();
  std::vector<ParameterPtr> batch;
  for (ParameterSpec& spec : specs) {
    check_spec(spec, impl_->device.get());
    auto parameter = std::make_unique<Parameter>();
    parameter->index = first + batch.size();
    const uint64_t id = spec.has_random_id ? spec.random_id : parameter->index;
    parameter->random_key = random_key(impl_->options.seed, id);
    parameter->spec = std::move(spec);
    batch.push_back(std::move(parameter));
  }
  SegmentSums sums = impl_->store.add(batch);
  impl_->pipeline.add(std::move(batch), std::move(sums), stream);
  return first;
}

void Engine::gradient_ready(size_t parameter, GradientSource gradient, ComputeStream stream) {
  impl_->pipeline.take(parameter, gradient, stream);
}

bool Engine::owns_gradient(size_t parameter) const {
  return impl_->pipeline.owns_gradient(parameter);
}

void Engine::forget_gradient(size_t parameter) {
  impl_->pipeline.forget(impl_->pipeline.parameter(parameter));
}

void Engine::forget_gradients() { impl_->pipeline.forget_all(); }

bool Engine::has_gradient(size_t parameter) const {
  return impl_->pipeline.has_gradient(parameter);
}

std::vector<size_t> Engine::changed_gradients(std::span<const SentGradient> sent,
                                              ComputeStream stream) {
  return impl_->pipeline.changed_gradients(sent, stream);
}

bool Engine::begin_step(const StepRequest& request, ComputeStream stream) {
  return impl_->pipeline.begin_step(request, stream);
}

void Engine::finish_step(ComputeStream stream) { impl_->pipeline.finish_step(stream); }

void Engine::enqueue_step(const StepRequest& request, const DeviceNumbers& numbers,
                          ComputeStream stream) {
  impl_->pipeline.enqueue_step(request, numbers, stream);
}

bool Engine::is_capturing(ComputeStream stream) const {
  return impl_->device != nullptr && impl_->device->is_capturing(stream);
}

void Engine::wait_weights(std::span<const size_t> parameters, ComputeStream stream) {
  impl_->pipeline.wait_weights(parameters, stream);
}

bool Engine::is_updating() const { return impl_->pipeline.is_updating(); }

void Engine::set_use_order(std::span<const size_t> parameters) {
  impl_->pipeline.set_use_order(parameters);
}

void Engine::announce_step(const StepRequest& request, ComputeStream stream) {
  impl_->pipeline.announce(request, stream);
}

void Engine::set_schedule(Schedule schedule) { impl_->pipeline.set_schedule(schedule); }

void Engine::start_trace(ComputeStream stream) { impl_->pipeline.trace().start(stream); }

std::vector<TraceSpan> Engine::stop_trace() {
  impl_->pipeline.synchronize();
  impl_->pipeline.trace().stop();
  return impl_->pipeline.trace().take();
}

std::vector<size_t> Engine::active_parameters() const {
  return impl_->pipeline.active_parameters();
}

void Engine::wait_gradient(size_t parameter) {
  impl_->pipeline.wait_gradient(impl_->pipeline.parameter(parameter));
}

double Engine::gradient_scale() const { return impl_->pipeline.gradient_scale(); }

void Engine::return_weight(size_t parameter) {
  impl_->pipeline.return_weight(impl_->pipeline.parameter(parameter));
}

double Engine::gradient_norm(const StepRequest& request, ComputeStream stream) {
  return impl_->pipeline.gradient_norm(request, stream);
}

void Engine::reload_weights(std::span<const size_t> parameters, ComputeStream stream) {
  std::vector<Parameter*> pointers;
  for (const size_t index : parameters) pointers.push_back(&impl_->pipeline.parameter(index));
  impl_->pipeline.reload_weights(pointers, stream);
}

void Engine::set_weight(size_t parameter, void* weight) {
  impl_->pipeline.synchronize();
  Parameter& target = impl_->pipeline.parameter(parameter);
  target.spec.weight = weight;
  if (target.spec.memory == Memory::kHost) target.host_weight = weight;
}

void Engine::load_step(size_t parameter, int64_t step, bool has_master) {
  Parameter& target = impl_->pipeline.parameter(parameter);
  target.step = step;
  target.keeps_loaded_master = has_master;
}

void Engine::ensure_states(size_t parameter, std::span<const double> hyper) {
  impl_->store.ensure_states(impl_->pipeline.parameter(parameter), hyper);
}

void Engine::set_formats(size_t parameter, const std::array<StateFormat, kMaxStates>& formats) {
  Parameter& target = impl_->pipeline.parameter(parameter);
  ParameterSpec wanted = target.spec;
  wanted.formats = formats;
  if (wanted.rule) check_factors(wanted);
  impl_->pipeline.set_formats(target, formats);
}

void Engine::set_placements(std::span<const PlacementChange> changes, ComputeStream stream) {
  impl_->pipeline.set_placements(changes, stream);
}

void Engine::synchronize() { impl_->pipeline.synchronize(); }

size_t Engine::parameter_count() const { return impl_->pipeline.parameters().size(); }

ParameterView Engine::view(size_t index) const {
  const Parameter& parameter = impl_->pipeline.parameter(index);
  return {.spec = &parameter.spec,
          .host_weight = parameter.host_weight,
          .master = parameter.master,
          .states = parameter.states,
          .state_memory = parameter.has_host_state() ? Memory::kHost : Memory::kDevice,
          .step = parameter.step,
          .gradient = parameter.gradient(),
          .gradient_type = parameter.gradient_type()};
}

MemoryStats Engine::memory() const { return impl_->store.memory(); }

StepStats Engine::stats() const { return impl_->pipeline.stats(); }

std::vector<std::string> Engine::take_warnings() {
  std::string warning = impl_->store.warning();
  if (impl_->has_warned || warning.empty()) return {};
  impl_->has_warned = true;
  return {std::move(warning)};
}

bool Engine::is_usable() const { return impl_->pipeline.is_usable(); }

const EngineOptions& Engine::options() const { return impl_->options; }

}  // namespace outboard
