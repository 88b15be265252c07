// The divisions that device code forms without a divider, against the correctly rounded ones: every
// mantissa, on the device itself, because its approximate reciprocals are its own.
#include <gtest/gtest.h>

#include "gpu_kernels/cuda_problem.h"
#include "gpu_kernels/fast_arithmetic.cuh"
#include "quant/companding.cuh"
#include "quant/root8.h"
#include "quant/sym8.h"

namespace outboard::test {
namespace {

using quant::Root8;
using quant::Sym8;

/// Counts the mantissas for which a factor or a unit of a block with scale mantissa * 2^exponent
/// differs from the division.
__global__ void count_wrong_factors(int exponent, unsigned* wrong) {
  const uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;
  const float scale = exact::from_bits(static_cast<uint32_t>(exponent + 127) << 23 | mantissa);
  const auto differs = [](float a, float b) { return exact::bits(a) != exact::bits(b); };
  const bool is_wrong =
      differs(quant::device::factor_of<Sym8>(scale), exact::div(Sym8::kLevels, scale)) ||
      differs(quant::device::factor_of<Root8>(scale), exact::div(Root8::kLevels, scale)) ||
      differs(quant::device::unit_of<Sym8>(scale), exact::div(scale, Sym8::kLevels)) ||
      differs(quant::device::unit_of<Root8>(scale), exact::div(scale, Root8::kLevels));
  if (is_wrong) atomicAdd(wrong, 1u);
}

/// Counts the mantissas for which a root, or a quotient by some of 64 divisors, is neither exact
/// nor called rare.
__global__ void count_wrong_results(int exponent, unsigned* wrong) {
  const uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = exact::from_bits(static_cast<uint32_t>(exponent + 127) << 23 | mantissa);
  gpu::FastArithmetic arithmetic;
  const float root = arithmetic.sqrt(value);
  bool is_wrong = !arithmetic.is_rare && exact::bits(root) != exact::bits(exact::sqrt(value));
  for (uint32_t k = 0; k < 64; ++k) {
    const uint32_t divisor_exponent = (k * 5 + mantissa) % 105 + 67;  // 2^-60 ... 2^44
    const uint32_t divisor_mantissa = (k * 0x9E3779B9u ^ mantissa * 0x85EBCA6Bu) & 0x7FFFFFu;
    const float divisor = exact::from_bits(divisor_exponent << 23 | divisor_mantissa);
    gpu::FastArithmetic divides;
    const float quotient = divides.div(value, divisor);
    is_wrong |=
        !divides.is_rare && exact::bits(quotient) != exact::bits(exact::div(value, divisor));
  }
  if (is_wrong) atomicAdd(wrong, 1u);
}

template <class Kernel>
unsigned wrong_of_all_mantissas(Kernel kernel, int exponent) {
  DeviceBytes memory(sizeof(unsigned));
  const unsigned none = 0;
  memory.upload(&none, sizeof(none));
  kernel<<<(1 << 23) / 256, 256>>>(exponent, reinterpret_cast<unsigned*>(memory.data()));
  unsigned wrong = ~0u;
  memory.download(&wrong, sizeof(wrong));
  return wrong;
}

TEST(GpuArithmetic, FactorsAndUnitsOfABlockAreThoseOfTheDivision) {
  OUTBOARD_REQUIRE_GPU();
  for (const int exponent : {-100, -63, -20, -1, 0, 1, 30, 100, 127}) {
    EXPECT_EQ(wrong_of_all_mantissas(count_wrong_factors, exponent), 0u) << exponent;
  }
}

TEST(GpuArithmetic, RootsAndQuotientsAreExactUnlessTheySayOtherwise) {
  OUTBOARD_REQUIRE_GPU();
  for (const int exponent :
       {-126, -101, -100, -99, -91, -90, -89, -51, -20, -1, 0, 1, 40, 59, 60}) {
    EXPECT_EQ(wrong_of_all_mantissas(count_wrong_results, exponent), 0u) << exponent;
  }
}

}  // namespace
}  // namespace outboard::test
