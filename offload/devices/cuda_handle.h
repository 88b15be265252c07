// Owners of CUDA's handles: the device's context, the guard that makes it current, streams, pooled
// events. No copies, no kernels.
#ifndef OUTBOARD_OFFLOAD_DEVICES_CUDA_HANDLE_H_
#define OUTBOARD_OFFLOAD_DEVICES_CUDA_HANDLE_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace outboard {

/// Keeps the primary context of one device (the one that the CUDA runtime and torch use) and its
/// free events alive. Thread safe.
class CudaContext {
 public:
  /// Throws Error(kDevice) if device `index` does not exist.
  explicit CudaContext(int index);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  /// An event of this device, from the pool. The context must be current.
  [[nodiscard]] cudaEvent_t take_event();
  void give_back_event(cudaEvent_t event) noexcept;

 private:
  friend class DeviceGuard;
  using Push = CUresult(CUDAAPI*)(CUcontext);
  using Pop = CUresult(CUDAAPI*)(CUcontext*);
  using Release = CUresult(CUDAAPI*)(CUdevice);

  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  Push push_ = nullptr;
  Pop pop_ = nullptr;
  Release release_ = nullptr;
  std::mutex mutex_;
  std::vector<cudaEvent_t> events_;
};

/// Makes a device current on this thread for a scope. Pushes and pops the context instead of
/// calling cudaSetDevice: threads that never used CUDA (the driver, autograd's) are left as they
/// were, and device 0 does not get a context because somebody worked on device 1.
class DeviceGuard {
 public:
  /// Throws Error(kDevice).
  explicit DeviceGuard(const CudaContext& context);
  /// For destructors: never throws; is_current() says whether it worked.
  DeviceGuard(const CudaContext& context, std::nothrow_t) noexcept;
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  [[nodiscard]] bool is_current() const { return is_current_; }

 private:
  const CudaContext& context_;
  bool is_current_;
};

/// A stream that does not wait for the legacy default stream. Destruction lets its work finish
/// without waiting for it.
class CudaStream {
 public:
  /// Throws Error(kDevice).
  explicit CudaStream(std::shared_ptr<CudaContext> context);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  [[nodiscard]] cudaStream_t get() const { return stream_; }
  [[nodiscard]] const std::shared_ptr<CudaContext>& context() const { return context_; }

 private:
  std::shared_ptr<CudaContext> context_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_DEVICES_CUDA_HANDLE_H_
