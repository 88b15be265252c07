// Sums of squares on the device against those of the host, bit by bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu_kernels/gradient_math.h"
#include "gpu_kernels/cuda_problem.h"
#include "gpu_kernels/gradient_math.h"
#include "outboard/hd.h"
#include "quant/random.h"
#include "quant/rounding.h"

namespace outboard::test {
namespace {

std::vector<std::byte> gradient_of(DType type, size_t elements, uint64_t seed) {
  std::vector<std::byte> bytes(elements * bytes_of(type));
  for (size_t i = 0; i < elements; ++i) {
    const uint64_t bits = splitmix64(seed + i);
    const float value = std::ldexp(static_cast<float>(static_cast<int32_t>(bits)),
                                   -31 - static_cast<int>(bits >> 60));
    const uint16_t half =
        type == DType::kBF16 ? quant::bf16_nearest(value) : quant::f16_nearest(value);
    std::memcpy(&bytes[i * bytes_of(type)],
                type == DType::kF32 ? static_cast<const void*>(&value) : &half, bytes_of(type));
  }
  return bytes;
}

/// The device's sums; `shift` elements away from 16-byte alignment.
std::vector<float> sums_on_gpu(const std::vector<std::byte>& gradient, DType type, size_t shift) {
  const size_t elements = gradient.size() / bytes_of(type);
  std::vector<float> sums(norm_segments(elements));
  DeviceBytes memory(gradient.size() + 256);
  DeviceBytes device_sums(sums.size() * sizeof(float));
  std::vector<std::byte> image(shift * bytes_of(type));
  image.insert(image.end(), gradient.begin(), gradient.end());
  memory.upload(image.data(), image.size());
  gpu::sum_of_squares(memory.data() + shift * bytes_of(type), type, elements,
                      reinterpret_cast<float*>(device_sums.data()), nullptr);
  device_sums.download(sums.data(), sums.size() * sizeof(float));
  return sums;
}

TEST(GpuSumOfSquares, GivesTheBitsOfTheCpu) {
  OUTBOARD_REQUIRE_GPU();
  const std::vector<size_t> sizes{
      1, 2, 63, 64, 65, 100, 4095, 4096, 4097, 8191, 12'345, 65'536, (1 << 21) + 4099};
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const size_t elements : sizes) {
      const std::vector<std::byte> gradient = gradient_of(type, elements, elements);
      std::vector<float> expected(norm_segments(elements));
      cpu::sum_of_squares(gradient.data(), type, elements, expected.data());
      for (const size_t shift : {0, 1, 2, 3}) {
        const std::vector<float> sums = sums_on_gpu(gradient, type, shift);
        for (size_t i = 0; i < sums.size(); ++i) {
          ASSERT_EQ(exact::bits(sums[i]), exact::bits(expected[i]))
              << name_of(type) << ", " << elements << " elements, shift " << shift << ", segment "
              << i;
        }
      }
    }
  }
}

TEST(GpuSumOfSquares, ShowsEveryNonFiniteElement) {
  OUTBOARD_REQUIRE_GPU();
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {infinity, -infinity, nan}) {
    for (const size_t at : {size_t{0}, size_t{63}, size_t{4095}, size_t{4096}, size_t{5000}}) {
      std::vector<std::byte> gradient = gradient_of(DType::kF32, 5001, 3);
      std::memcpy(&gradient[at * sizeof(float)], &bad, sizeof(float));
      const std::vector<float> sums = sums_on_gpu(gradient, DType::kF32, 0);
      EXPECT_FALSE(std::isfinite(sums[at / kNormSegmentElements])) << bad << " at " << at;
      EXPECT_TRUE(std::isfinite(sums[1 - at / kNormSegmentElements])) << bad << " at " << at;
    }
  }
}

}  // namespace
}  // namespace outboard::test
