// Turns CUDA status codes into Error. Nothing else.
#ifndef OUTBOARD_OFFLOAD_DEVICES_CUDA_CHECK_H_
#define OUTBOARD_OFFLOAD_DEVICES_CUDA_CHECK_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "outboard/error.h"

namespace outboard {

/// Throws Error(kDevice) unless `status` is success. `call` is the CUDA function's name, `bytes`
/// what it was to allocate, copy or register (0: not that kind of call). Clears the error that CUDA
/// keeps for the thread.
inline void check_cuda(cudaError_t status, const char* call, size_t bytes = 0) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  const std::string amount = bytes == 0 ? "" : " of " + std::to_string(bytes) + " bytes";
  const char* advice =
      "the cause may be earlier work on the device; CUDA_LAUNCH_BLOCKING=1 shows where";
  if (status == cudaErrorMemoryAllocation) {
    advice = "free device memory or keep fewer parameters resident";
  } else if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) {
    advice = "install an NVIDIA driver for this CUDA, or keep the parameters on the CPU";
  }
  fail(ErrorKind::kDevice, "CudaDevice", call, amount, " failed: ", cudaGetErrorString(status),
       " (", cudaGetErrorName(status), "); ", advice);
}

/// For destructors and for refusals that are answers: drops the status and the error that CUDA
/// keeps for the thread. At process end every call may say that the runtime is unloading.
inline void ignore_cuda(cudaError_t status) noexcept {
  if (status != cudaSuccess) (void)cudaGetLastError();
}

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_DEVICES_CUDA_CHECK_H_
