// CUDA calls behind CudaEvent, CudaQueue and CudaDevice. No kernel is written here.
#include "offload/devices/cuda_device.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "gpu_kernels/gradient_math.h"
#include "offload/devices/cuda_check.h"

namespace outboard {
namespace {

cudaStream_t as_cuda(ComputeStream stream) { return static_cast<cudaStream_t>(stream); }

const CudaEvent& as_cuda(const Event& event) {
  const auto* const cuda = dynamic_cast<const CudaEvent*>(&event);
  if (cuda == nullptr) {
    fail(ErrorKind::kDevice, "CudaDevice",
         "an event of another kind of device; wait only for events that CUDA queues gave");
  }
  return *cuda;
}

// The context must be current.
void wait_on(cudaStream_t stream, const EventPtr& event) {
  if (event == nullptr) return;
  check_cuda(cudaStreamWaitEvent(stream, as_cuda(*event).get(), 0), "cudaStreamWaitEvent");
}

bool has_device_numbers(const ResidentUpdate& update) { return update.device_step != nullptr; }

gpu::LaunchKey key_of(const ResidentUpdate& update) {
  return {.rule = update.rule,
          .scalars = has_device_numbers(update) ? RuleScalars() : update.scalars,
          .gradient_type = update.type,
          .weight_type = update.type,
          .master_format = update.master_format,
          .formats = update.formats,
          .step = has_device_numbers(update) ? 0 : update.step};
}

gpu::DeviceParameter parameter_of(const ResidentUpdate& update) {
  return {.gradient = update.gradient,
          .weight = update.weight,
          .old_weight = update.old_weight,
          .master = update.master,
          .codes = update.codes,
          .scales = update.scales,
          .elements = update.elements,
          .element_offset = update.element_offset,
          .rows = update.rows,
          .random_key = {update.random_key_low, update.random_key_high}};
}

struct Launch {
  gpu::LaunchKey key;
  std::vector<gpu::DeviceParameter> parameters;
  std::vector<gpu::DeviceNumbers> numbers = {};  // one for each parameter, or none
};

// Groups are few (parameter groups x formats), parameters may be thousands; groups keep the order
// of their first parameter.
std::vector<Launch> group(std::span<const ResidentUpdate> updates) {
  std::vector<Launch> launches;
  for (const ResidentUpdate& update : updates) {
    if (update.elements == 0) continue;
    const gpu::LaunchKey key = key_of(update);
    auto launch = std::find_if(launches.begin(), launches.end(), [&](const Launch& other) {
      return other.key == key && other.numbers.empty() != has_device_numbers(update);
    });
    if (launch == launches.end()) launch = launches.insert(launches.end(), Launch{key, {}});
    launch->parameters.push_back(parameter_of(update));
    if (has_device_numbers(update)) {
      launch->numbers.push_back({.step = update.device_step, .hyper = update.device_hyper});
    }
  }
  return launches;
}

}  // namespace

CudaEvent::CudaEvent(std::shared_ptr<CudaContext> context, cudaStream_t stream)
    : context_(std::move(context)), event_(context_->take_event()) {
  const cudaError_t status = cudaEventRecord(event_, stream);
  if (status != cudaSuccess) context_->give_back_event(event_);
  check_cuda(status, "cudaEventRecord");
}

// A stream that was told to wait keeps the point it was given: the handle may be recorded again.
CudaEvent::~CudaEvent() { context_->give_back_event(event_); }

void CudaEvent::synchronize() const {
  const DeviceGuard guard(*context_);
  check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize");
}

bool CudaEvent::is_done() const {
  const DeviceGuard guard(*context_);
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  check_cuda(status, "cudaEventQuery");
  return true;
}

void CudaQueue::wait(const EventPtr& event) {
  const DeviceGuard guard(*stream_.context());
  wait_on(stream_.get(), event);
}

void CudaQueue::copy_to_host(void* host, const void* device, size_t bytes) {
  copy(host, device, bytes, cudaMemcpyDeviceToHost);
}

void CudaQueue::copy_to_device(void* device, const void* host, size_t bytes) {
  copy(device, host, bytes, cudaMemcpyHostToDevice);
}

EventPtr CudaQueue::record() {
  const DeviceGuard guard(*stream_.context());
  return std::make_shared<CudaEvent>(stream_.context(), stream_.get());
}

void CudaQueue::copy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return;
  const DeviceGuard guard(*stream_.context());
  check_cuda(cudaMemcpyAsync(target, source, bytes, kind, stream_.get()),
             kind == cudaMemcpyHostToDevice ? "cudaMemcpyAsync to the device"
                                            : "cudaMemcpyAsync to the host",
             bytes);
}

CudaDevice::CudaDevice(int index)
    : context_(std::make_shared<CudaContext>(index)), zeroing_(context_) {}

CudaDevice::~CudaDevice() {
  const DeviceGuard guard(*context_, std::nothrow);
  launchers_.clear();
}

std::unique_ptr<CopyQueue> CudaDevice::make_copy_queue() {
  return std::make_unique<CudaQueue>(context_);
}

EventPtr CudaDevice::record(ComputeStream stream) {
  const DeviceGuard guard(*context_);
  return std::make_shared<CudaEvent>(context_, as_cuda(stream));
}

void CudaDevice::wait(ComputeStream stream, const EventPtr& event) {
  const DeviceGuard guard(*context_);
  wait_on(as_cuda(stream), event);
}

double CudaDevice::seconds_between(const Event& first, const Event& second) const {
  const DeviceGuard guard(*context_);
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, as_cuda(first).get(), as_cuda(second).get()),
             "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

void CudaDevice::sum_of_squares(ComputeStream stream, const void* gradient, DType type,
                                size_t elements, float* device_sums) {
  if (elements == 0) return;
  const DeviceGuard guard(*context_);
  gpu::sum_of_squares(gradient, type, elements, device_sums, stream);
}

void CudaDevice::update_resident(ComputeStream stream, std::span<const ResidentUpdate> updates) {
  if (updates.empty()) return;
  const DeviceGuard guard(*context_);
  gpu::StepLauncher& launcher = launcher_of(stream);
  for (const Launch& launch : group(updates)) {
    if (launch.numbers.empty()) {
      launcher.launch(launch.key, launch.parameters, stream);
    } else {
      launcher.launch(launch.key, launch.parameters, launch.numbers, stream);
    }
  }
}

bool CudaDevice::is_capturing(ComputeStream stream) const {
  const DeviceGuard guard(*context_);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(as_cuda(stream), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

gpu::StepLauncher& CudaDevice::launcher_of(ComputeStream stream) {
  const std::lock_guard lock(mutex_);
  const bool is_own = std::ranges::any_of(
      streams_, [stream](const auto& own) { return own->get() == as_cuda(stream); });
  return launchers_.try_emplace(stream, is_own ? gpu::TablePlace::kHost : gpu::TablePlace::kDevice)
      .first->second;
}

ComputeStream CudaDevice::make_stream() {
  const std::lock_guard lock(mutex_);
  return streams_.emplace_back(std::make_unique<CudaStream>(context_))->get();
}

void CudaDevice::copy_on_device(ComputeStream stream, void* target, const void* source,
                                size_t bytes) {
  if (bytes == 0) return;
  const DeviceGuard guard(*context_);
  check_cuda(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, as_cuda(stream)),
             "cudaMemcpyAsync on the device", bytes);
}

void CudaDevice::write_to_host(ComputeStream stream, float* host, const float* device,
                               size_t count) {
  if (count == 0) return;
  const DeviceGuard guard(*context_);
  cudaPointerAttributes attributes{};
  const cudaError_t status = cudaPointerGetAttributes(&attributes, host);
  ignore_cuda(status);
  if (status == cudaSuccess && attributes.devicePointer != nullptr) {
    gpu::write_floats(static_cast<float*>(attributes.devicePointer), device, count, stream);
    return;
  }
  check_cuda(
      cudaMemcpyAsync(host, device, count * sizeof(float), cudaMemcpyDeviceToHost, as_cuda(stream)),
      "cudaMemcpyAsync to the host", count * sizeof(float));
}

void CudaDevice::poison(ComputeStream stream, void* target, size_t bytes) {
  if (bytes == 0) return;
  const DeviceGuard guard(*context_);
  check_cuda(cudaMemsetAsync(target, 0xFF, bytes, as_cuda(stream)), "cudaMemsetAsync", bytes);
}

std::shared_ptr<void> CudaDevice::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  const DeviceGuard guard(*context_);
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes), "cudaMalloc", bytes);
  std::shared_ptr<void> owner(memory, [context = context_](void* owned) {
    const DeviceGuard current(*context, std::nothrow);
    if (current.is_current()) ignore_cuda(cudaFree(owned));
  });
  // A stream of its own: waiting here waits for the fill alone, and afterwards every stream sees
  // it.
  check_cuda(cudaMemsetAsync(memory, 0, bytes, zeroing_.get()), "cudaMemsetAsync", bytes);
  check_cuda(cudaStreamSynchronize(zeroing_.get()), "cudaStreamSynchronize");
  return owner;
}

bool CudaDevice::pin(void* host, size_t bytes) {
  if (bytes == 0) return false;
  const DeviceGuard guard(*context_);
  const cudaError_t status = cudaHostRegister(host, bytes, cudaHostRegisterPortable);
  ignore_cuda(status);
  return status == cudaSuccess;
}

void CudaDevice::unpin(void* host, size_t) noexcept {
  const DeviceGuard guard(*context_, std::nothrow);
  if (guard.is_current()) ignore_cuda(cudaHostUnregister(host));
}

std::shared_ptr<Device> make_cuda_device(int index) { return std::make_shared<CudaDevice>(index); }

}  // namespace outboard
