// The divisions that device code forms without a divider, against the correctly rounded ones: every
// mantissa, on the device itself, because its approximate reciprocals are its own.
#include <gtest/gtest.h>

#include "gpu_kernels/cuda_problem.h"
#include "gpu_kernels/fast_arithmetic.cuh"
#include "quant/companding.cuh"
#include "quant/dynamic8_signed.cuh"
#include "quant/e4m3.cuh"
#include "quant/nf4.cuh"
#include "quant/root4.cuh"
#include "quant/root8.h"
#include "quant/sym8.h"

namespace outboard::test {
namespace {

using quant::Root8;
using quant::Sym8;
using quant::device::E4M3Levels;

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
      differs(quant::device::unit_of<Root8>(scale), exact::div(scale, Root8::kLevels)) ||
      differs(quant::device::factor_of<E4M3Levels>(scale), exact::div(448.0f, scale)) ||
      differs(quant::device::unit_of<E4M3Levels>(scale), exact::div(scale, 448.0f)) ||
      differs(quant::device::RunEncoder<quant::NF4>(scale).factor, exact::div(1.0f, scale)) ||
      differs(quant::device::RunEncoder<quant::Root4>(scale).factor,
              exact::div(16.0f, exact::sqrt(scale)));
  if (is_wrong) atomicAdd(wrong, 1u);
}

/// Counts the mantissas for which a root, or a quotient by some of 64 divisors, is neither exact
/// nor called rare.
__global__ void count_wrong_results(int exponent, unsigned* wrong) {
  const uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = exact::from_bits(static_cast<uint32_t>(exponent + 127) << 23 | mantissa);
  gpu::FastArithmetic arithmetic;
  const float root = arithmetic.sqrt(value);
  bool is_wrong = !arithmetic.is_rare() && exact::bits(root) != exact::bits(exact::sqrt(value));
  for (uint32_t k = 0; k < 64; ++k) {
    const uint32_t divisor_exponent = (k * 5 + mantissa) % 105 + 67;  // 2^-60 ... 2^44
    const uint32_t divisor_mantissa = (k * 0x9E3779B9u ^ mantissa * 0x85EBCA6Bu) & 0x7FFFFFu;
    const float divisor = exact::from_bits(divisor_exponent << 23 | divisor_mantissa);
    gpu::FastArithmetic divides;
    const float quotient = divides.div(value, divisor);
    divides.expect_ordinary(quotient);
    is_wrong |=
        !divides.is_rare() && exact::bits(quotient) != exact::bits(exact::div(value, divisor));
  }
  if (is_wrong) atomicAdd(wrong, 1u);
}

/// Counts the mantissas of a scale for which the quotient of some of 64 values of its block differs
/// from the division, and more than far below the first threshold of the dynamic map.
__global__ void count_wrong_quotients(int exponent, unsigned* wrong) {
  const uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;
  const float scale = exact::from_bits(static_cast<uint32_t>(exponent + 127) << 23 | mantissa);
  if (scale == 0.0f) return;  // a block of zeros: no quotient is looked at
  const quant::device::RunEncoder<quant::Dynamic8Signed> encoder(scale);
  bool is_wrong = false;
  for (uint32_t k = 0; k < 64; ++k) {
    const float part = exact::from_bits((127u - k / 2) << 23 | (k * 0x9E3779B9u & 0x7FFFFFu));
    const float value = exact::mul(part < 1.0f ? part : 1.0f, k % 2 == 0 ? scale : -scale);
    const float expected = exact::div(value, scale);
    const float actual = encoder.quotient(value);
    const bool is_tiny = fabsf(expected) < 0x1p-30f && fabsf(actual) < 0x1p-30f;
    is_wrong |= signbit(expected) != signbit(actual) ||
                (!is_tiny && exact::bits(expected) != exact::bits(actual));
  }
  if (is_wrong) atomicAdd(wrong, 1u);
}

/// Counts the floats of an exponent for which the code of a pair differs from the definition.
__global__ void count_wrong_e4m3(int exponent, unsigned* wrong) {
  const uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = exact::from_bits(static_cast<uint32_t>(exponent + 127) << 23 | mantissa);
  if (value > 448.0f) return;
  const uint32_t expected =
      quant::e4m3_nearest(value) | static_cast<uint32_t>(quant::e4m3_nearest(-value)) << 8;
  if (quant::device::e4m3_pair_nearest(value, -value) != expected) atomicAdd(wrong, 1u);
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

TEST(GpuArithmetic, QuotientsByTheScaleOfADynamicBlockAreThoseOfTheDivision) {
  OUTBOARD_REQUIRE_GPU();
  for (const int exponent : {-127, -126, -125, -100, -60, -20, -1, 0, 1, 40, 100, 126, 127}) {
    EXPECT_EQ(wrong_of_all_mantissas(count_wrong_quotients, exponent), 0u) << exponent;
  }
}

TEST(GpuArithmetic, TheConverterToE4m3GivesTheCodesOfTheDefinition) {
  OUTBOARD_REQUIRE_GPU();
  for (int exponent = -20; exponent <= 8; ++exponent) {
    EXPECT_EQ(wrong_of_all_mantissas(count_wrong_e4m3, exponent), 0u) << exponent;
  }
}

}  // namespace
}  // namespace outboard::test
