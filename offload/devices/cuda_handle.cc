// The device's context through the driver's entry points (the driver library is not linked, so that
// the same binary loads on machines without one), and the owners of streams and events.
#include "offload/devices/cuda_handle.h"

#include <utility>

#include "offload/devices/cuda_check.h"

namespace outboard {
namespace {

// Version whose signatures of the four functions below are used; they have not changed since.
constexpr unsigned int kDriverApi = 12000;

template <class Function>
Function driver_function(const char* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check_cuda(
      cudaGetDriverEntryPointByVersion(name, &address, kDriverApi, cudaEnableDefault, &result),
      "cudaGetDriverEntryPointByVersion");
#else
  check_cuda(cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &result),
             "cudaGetDriverEntryPoint");
#endif
  if (result != cudaDriverEntryPointSuccess || address == nullptr) {
    fail(ErrorKind::kDevice, "CudaDevice", "the driver has no ", name, " of CUDA ",
         kDriverApi / 1000, "; update the NVIDIA driver");
  }
  return reinterpret_cast<Function>(address);
}

void check_index(int index) {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (index < 0 || index >= count) {
    fail(ErrorKind::kDevice, "CudaDevice", "device ", index, " was asked for, ", count,
         " are visible; choose one below ", count);
  }
}

void check_driver(CUresult status, const char* call) {
  if (status == CUDA_SUCCESS) return;
  fail(ErrorKind::kDevice, "CudaDevice", call, " failed with driver error ",
       static_cast<int>(status), "; see whether the device works and has free memory (nvidia-smi)");
}

}  // namespace

CudaContext::CudaContext(int index) {
  check_index(index);
  using Get = CUresult(CUDAAPI*)(CUdevice*, int);
  using Retain = CUresult(CUDAAPI*)(CUcontext*, CUdevice);
  push_ = driver_function<Push>("cuCtxPushCurrent");
  pop_ = driver_function<Pop>("cuCtxPopCurrent");
  release_ = driver_function<Release>("cuDevicePrimaryCtxRelease");
  check_driver(driver_function<Get>("cuDeviceGet")(&device_, index), "cuDeviceGet");
  check_driver(driver_function<Retain>("cuDevicePrimaryCtxRetain")(&context_, device_),
               "cuDevicePrimaryCtxRetain");
}

CudaContext::~CudaContext() {
  {
    const DeviceGuard guard(*this, std::nothrow);
    if (guard.is_current()) {
      for (const cudaEvent_t event : events_) ignore_cuda(cudaEventDestroy(event));
    }
  }
  // At process end this may say that the driver is shutting down.
  (void)release_(device_);
}

cudaEvent_t CudaContext::take_event() {
  {
    const std::lock_guard lock(mutex_);
    if (!events_.empty()) {
      const cudaEvent_t event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  cudaEvent_t event = nullptr;
  // With timing, because any event may end up in seconds_between(); the timestamp costs the device
  // well under a microsecond. Blocking, so that a thread that synchronises leaves its core to the
  // update.
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventBlockingSync), "cudaEventCreateWithFlags");
  return event;
}

void CudaContext::give_back_event(cudaEvent_t event) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    events_.push_back(event);
  } catch (...) {
    const DeviceGuard guard(*this, std::nothrow);
    if (guard.is_current()) ignore_cuda(cudaEventDestroy(event));
  }
}

DeviceGuard::DeviceGuard(const CudaContext& context) : context_(context), is_current_(true) {
  check_driver(context.push_(context.context_), "cuCtxPushCurrent");
}

DeviceGuard::DeviceGuard(const CudaContext& context, std::nothrow_t) noexcept
    : context_(context), is_current_(context.push_(context.context_) == CUDA_SUCCESS) {}

DeviceGuard::~DeviceGuard() {
  CUcontext popped = nullptr;
  if (is_current_) (void)context_.pop_(&popped);
}

CudaStream::CudaStream(std::shared_ptr<CudaContext> context) : context_(std::move(context)) {
  const DeviceGuard guard(*context_);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
             "cudaStreamCreateWithFlags");
}

CudaStream::~CudaStream() {
  const DeviceGuard guard(*context_, std::nothrow);
  if (guard.is_current()) ignore_cuda(cudaStreamDestroy(stream_));
}

}  // namespace outboard
