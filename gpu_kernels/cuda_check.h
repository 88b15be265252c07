// Checked CUDA runtime calls for the GPU kernels' launchers.
#ifndef OUTBOARD_GPU_KERNELS_CUDA_CHECK_H_
#define OUTBOARD_GPU_KERNELS_CUDA_CHECK_H_

#include <cuda_runtime_api.h>

#include <string_view>

#include "outboard/error.h"

namespace outboard::gpu {

/// Throws Error(kDevice) that names `call` and CUDA's reason unless `status` is success.
inline void check_cuda(cudaError_t status, std::string_view who, std::string_view call) {
  if (status == cudaSuccess) return;
  fail(ErrorKind::kDevice, who, call, " failed: ", cudaGetErrorName(status), " (",
       cudaGetErrorString(status),
       "); an earlier kernel may be the cause: run with CUDA_LAUNCH_BLOCKING=1 to find it");
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_CUDA_CHECK_H_
