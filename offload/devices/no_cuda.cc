// Stands in for cuda_device.cc in builds without CUDA.
#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard {

std::shared_ptr<Device> make_cuda_device(int index) {
  fail(
      ErrorKind::kDevice, "CudaDevice", "device ", index,
      " was asked for, but this build has no CUDA; install a CUDA toolkit and build again, or keep "
      "the parameters on the CPU");
}

}  // namespace outboard
