// The GPU kernels of a build without CUDA: the same symbols, each of which says so.
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "gpu_kernels/gradient_math.h"
#include "gpu_kernels/step.h"
#include "outboard/error.h"

namespace outboard::gpu {
namespace {

[[noreturn]] void fail_without_cuda(std::string_view who) {
  fail(ErrorKind::kDevice, who,
       "this build of outboard has no CUDA kernels; build it where nvcc is found "
       "(-DOUTBOARD_CUDA=ON says what is missing)");
}

}  // namespace

class StepLauncher::Impl {};

StepLauncher::StepLauncher(TablePlace) {}
StepLauncher::~StepLauncher() = default;

void StepLauncher::launch(const LaunchKey&, std::span<const DeviceParameter>, StreamHandle) {
  fail_without_cuda("StepLauncher");
}

void StepLauncher::launch(const LaunchKey&, std::span<const DeviceParameter>,
                          std::span<const DeviceNumbers>, StreamHandle) {
  fail_without_cuda("StepLauncher");
}

void sum_of_squares(const void*, DType, size_t, float*, StreamHandle) {
  fail_without_cuda("sum_of_squares");
}

void write_floats(float*, const float*, size_t, StreamHandle) { fail_without_cuda("write_floats"); }

}  // namespace outboard::gpu
