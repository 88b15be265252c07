// Measurements of a machine; see machine.h. Times are the host's clock around whole batches of
// copies and whole passes over memory.
#include "offload/planning/machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>

#include "cpu_kernels/parallel.h"
#include "cpu_kernels/step.h"
#include "offload/host_update.h"
#include "offload/memory/host_memory.h"
#include "offload/planning/cost_model.h"
#include "offload/state_store.h"
#include "outboard/error.h"
#include "outboard/state_format.h"

namespace outboard {
namespace {

constexpr int kCopiesPerBatch = 4;
// A measurement is repeated this often, and after the first time no longer than this.
constexpr int kRepeats = 5;
constexpr double kSecondsPerMeasurement = 0.15;

using Clock = std::chrono::steady_clock;

/// The shortest of several runs, after one that warms up.
double shortest(const std::function<void()>& run) {
  run();
  double best = std::numeric_limits<double>::infinity();
  double spent = 0;
  for (int i = 0; i < kRepeats && (i < 1 || spent < kSecondsPerMeasurement); ++i) {
    const Clock::time_point start = Clock::now();
    run();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

/// The default hyper-parameters, in catalogue order.
std::vector<double> default_hyper(const RuleInfo& rule) {
  std::vector<double> hyper;
  for (const HyperParameter& parameter : rule.hyper_parameters) {
    hyper.push_back(parameter.default_value);
  }
  return hyper;
}

StateFormat format_of(const StateInfo& state, const StateFormats& formats) {
  return state.is_signed ? formats.signed_state : formats.unsigned_state;
}

/// The link and the device's memory, with arrays at either end.
class CopyProbe {
 public:
  CopyProbe(std::shared_ptr<Device> device, size_t copy_bytes)
      : copy_bytes_(copy_bytes),
        device_(std::move(device)),
        memory_(device_),
        host_source_(memory_.reserve(copy_bytes, MemoryKind::kStaging, true)),
        host_target_(memory_.reserve(copy_bytes, MemoryKind::kStaging, true)) {
    memory_.commit();
    device_source_ = device_->allocate(copy_bytes);
    device_target_ = device_->allocate(copy_bytes);
    down_ = device_->make_copy_queue();
    up_ = device_->make_copy_queue();
    stream_ = device_->make_stream();
  }
  /// A failed measurement may have left copies under way: the arrays outlive them.
  ~CopyProbe() {
    for (const auto& record :
         {std::function<EventPtr()>([&] { return down_->record(); }),
          std::function<EventPtr()>([&] { return up_->record(); }),
          std::function<EventPtr()>([&] { return device_->record(stream_); })}) {
      try {
        record()->synchronize();
      } catch (const Error&) {  // the device is lost; it was reported to the caller already
      }
    }
  }
  CopyProbe(const CopyProbe&) = delete;
  CopyProbe& operator=(const CopyProbe&) = delete;

  void measure(Machine& machine) {
    const double batch_bytes = static_cast<double>(copy_bytes_) * kCopiesPerBatch;
    machine.link_down = batch_bytes / shortest([&] { copy_down()->synchronize(); });
    machine.link_up = batch_bytes / shortest([&] { copy_up()->synchronize(); });
    machine.link_duplex = batch_bytes / shortest([&] {
                            const EventPtr down = copy_down();
                            const EventPtr up = copy_up();
                            down->synchronize();
                            up->synchronize();
                          });
    machine.device_bandwidth = 2 * batch_bytes / shortest([&] { copy_inside()->synchronize(); });
  }

 private:
  EventPtr copy_down() {
    for (int i = 0; i < kCopiesPerBatch; ++i) {
      down_->copy_to_host(host_target_.data(), device_source_.get(), copy_bytes_);
    }
    return down_->record();
  }
  EventPtr copy_up() {
    for (int i = 0; i < kCopiesPerBatch; ++i) {
      up_->copy_to_device(device_target_.get(), host_source_.data(), copy_bytes_);
    }
    return up_->record();
  }
  EventPtr copy_inside() {
    for (int i = 0; i < kCopiesPerBatch; ++i) {
      device_->copy_on_device(stream_, device_target_.get(), device_source_.get(), copy_bytes_);
    }
    return device_->record(stream_);
  }

  size_t copy_bytes_;
  std::shared_ptr<Device> device_;
  HostMemory memory_;
  HostArray host_source_;
  HostArray host_target_;
  std::shared_ptr<void> device_source_;
  std::shared_ptr<void> device_target_;
  std::unique_ptr<CopyQueue> down_;
  std::unique_ptr<CopyQueue> up_;
  ComputeStream stream_ = nullptr;
};

/// One parameter on scratch memory, updated as the driver would.
class UpdateProbe {
 public:
  UpdateProbe(const UpdateToMeasure& wish, size_t elements, int threads)
      : elements_(elements), memory_(nullptr, false, threads) {
    const RuleInfo& rule = rule_info(wish.rule);
    if (rule.needs_whole()) {
      fail(ErrorKind::kValue, "measure_machine", rule.name,
           rule.with_norms != nullptr ? " needs norms" : " needs row and column means",
           " of whole parameters; measure AdamW, and expect a second pass");
    }
    const size_t padded = padded_elements(elements);
    const HostArray gradient = reserve(elements * bytes_of(wish.type));
    const HostArray weight = reserve(elements * bytes_of(wish.type));
    const HostArray master = reserve(padded * bytes_of(wish.master));
    const StateFormats formats = state_formats_named(wish.state_format);
    const std::vector<double> hyper = default_hyper(rule);
    std::array<HostArray, kMaxStates> codes;
    std::array<HostArray, kMaxStates> scales;
    for (size_t i = 0; i < rule.states.size(); ++i) {
      if (!needs_state(rule, i, hyper)) continue;
      update_.formats[i] = format_of(rule.states[i], formats);
      codes[i] = reserve(update_.formats[i].code_bytes(elements));
      scales[i] = reserve(update_.formats[i].scale_count(elements) * sizeof(float));
    }
    memory_.commit();
    // Any bytes that are small finite numbers in every type: zeros would leave out roundings, NaN
    // and subnormals would take slow paths.
    std::memset(gradient.data(), 0x3A, gradient.bytes());
    std::memset(weight.data(), 0x3C, weight.bytes());
    for (size_t i = 0; i < rule.states.size(); ++i) {
      update_.states[i] = {codes[i].data(), scales[i].as<float>(),
                           update_.formats[i].block_elements};
    }
    update_.rule = wish.rule;
    update_.scalars = rule.scalars(hyper, 1, 1.0);
    update_.elements = elements;
    update_.gradient = gradient.data();
    update_.gradient_type = update_.weight_type = wish.type;
    update_.weight = weight.data();
    update_.master_format = wish.master;
    update_.master = master.data();
    update_.step = 1;
  }

  /// Seconds per element with all threads of `arena`.
  double measure(cpu::Arena& arena) {
    const cpu::ResolvedUpdate update(update_);
    const size_t grain = round_up(kGrainElements, update.unit_elements());
    return shortest([&] {
             arena.run(elements_, grain,
                       [&](size_t first, size_t last) { update.run(first, last); });
           }) /
           static_cast<double>(elements_);
  }

 private:
  HostArray reserve(size_t bytes) { return memory_.reserve(bytes, MemoryKind::kStaging, false); }

  size_t elements_;
  HostMemory memory_;
  cpu::ParameterUpdate update_{};
};

/// Measures one kind, notes it if `noted`, and raises host_bandwidth to what it moves.
double measure_update(const UpdateToMeasure& wish, const MachineOptions& options, cpu::Arena& arena,
                      Machine& machine) {
  const double seconds = UpdateProbe(wish, options.update_elements, arena.threads()).measure(arena);
  const double traffic = update_traffic({.elements = options.update_elements,
                                         .type = wish.type,
                                         .master = wish.master,
                                         .state_bytes = state_bytes(wish.rule, wish.state_format)});
  machine.host_bandwidth = std::max(machine.host_bandwidth, traffic / seconds);
  return seconds;
}

}  // namespace

int update_threads(int threads) { return cpu::Arena(threads).threads(); }

double state_bytes(RuleId rule, const std::string& state_format) {
  constexpr size_t kElements = size_t{1} << 20;  // whole blocks of every format
  const RuleInfo& info = rule_info(rule);
  const StateFormats formats = state_formats_named(state_format);
  const std::vector<double> hyper = default_hyper(info);
  size_t bytes = 0;
  for (size_t i = 0; i < info.states.size(); ++i) {
    if (!needs_state(info, i, hyper)) continue;
    if (info.states[i].shape != StateShape::kElements) continue;  // next to nothing
    const StateFormat format = format_of(info.states[i], formats);
    bytes += format.code_bytes(kElements) + format.scale_count(kElements) * sizeof(float);
  }
  return static_cast<double>(bytes) / kElements;
}

Machine measure_machine(const std::shared_ptr<Device>& device, const MachineOptions& options) {
  if (options.copy_bytes == 0 || options.update_elements == 0) {
    fail(ErrorKind::kValue, "measure_machine", "copy_bytes is ", options.copy_bytes,
         " and update_elements ", options.update_elements, "; give sizes above 0");
  }
  Machine machine;
  if (device != nullptr) CopyProbe(device, options.copy_bytes).measure(machine);
  cpu::Arena arena(options.threads);
  machine.threads = arena.threads();
  // In place and without a root's worth of rounding: the kernel that is closest to a copy.
  (void)measure_update(
      {.state_format = "fp32", .type = DType::kF32, .master = MasterFormat::kWeight}, options,
      arena, machine);
  for (const UpdateToMeasure& wish : options.updates) {
    const double seconds = measure_update(wish, options, arena, machine);
    machine.updates.push_back(
        {update_name(rule_info(wish.rule).name, wish.state_format, wish.master), seconds});
  }
  return machine;
}

}  // namespace outboard
