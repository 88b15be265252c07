// A build without CUDA keeps the GPU symbols and says clearly that it cannot run them.
#include <gtest/gtest.h>

#include <string>

#include "gpu_kernels/gradient_math.h"
#include "gpu_kernels/step.h"
#include "outboard/error.h"

namespace outboard::test {
namespace {

template <class Call>
std::string device_error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.kind() == ErrorKind::kDevice ? error.what() : "another kind of error";
  }
  return "no error";
}

TEST(NoCudaBuild, SaysThatItHasNoKernels) {
  gpu::StepLauncher launcher;
  EXPECT_NE(device_error_of([&] { launcher.launch({}, {}, nullptr); }).find("no CUDA kernels"),
            std::string::npos);
  EXPECT_NE(device_error_of([] {
              gpu::sum_of_squares(nullptr, DType::kF32, 1, nullptr, nullptr);
            }).find("no CUDA kernels"),
            std::string::npos);
}

}  // namespace
}  // namespace outboard::test
