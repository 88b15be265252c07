// The dear operations of a rule without branches, so that the elements of a run overlap: exact for
// the operands that occur, and a flag for the others, whose run is then updated again the plain
// way.
#ifndef OUTBOARD_GPU_KERNELS_FAST_ARITHMETIC_CUH_
#define OUTBOARD_GPU_KERNELS_FAST_ARITHMETIC_CUH_

#include <cstdint>

#include "outboard/hd.h"
#include "quant/device_rounding.cuh"

namespace outboard::gpu {

/// What a rule's update_usual() computes with; see outboard/rule.h. The roots and quotients are
/// those that the compiler's own correctly rounded operations form when no operand is special; it
/// guards each of them with a branch, which keeps eight elements from being worked on at a time.
class FastArithmetic {
 public:
  /// The root of 2^-100 <= a <= 2^60.
  __device__ __forceinline__ float sqrt(float a) {
    const uint32_t b = exact::bits(a);  // in the order of values; signs and NaN lie above them
    least_radicand_ = b < least_radicand_ ? b : least_radicand_;
    largest_radicand_ = b > largest_radicand_ ? b : largest_radicand_;
    float reciprocal;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(a));
    const float root = exact::mul(a, reciprocal);
    const float remainder = exact::fma(-root, root, a);
    return exact::fma(remainder, exact::mul(reciprocal, 0.5f), root);
  }

  /// The quotient of 2^-80 <= |a| by 2^-60 <= b <= 2^45, as exact::div: it is not subnormal and the
  /// remainder is exact. NaN where the true quotient is no finite number or close to that.
  __device__ __forceinline__ float div(float a, float b) {
    least_dividend_ = fminf(least_dividend_, fabsf(a));
    float rough;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(rough) : "f"(b));
    const float reciprocal = exact::fma(rough, exact::fma(-b, rough, 1.0f), rough);
    const float quotient = exact::mul(a, reciprocal);
    const float remainder = exact::fma(-b, quotient, a);
    return exact::fma(reciprocal, remainder, quotient);
  }

  /// As exact::div_by_constant for a finite value.
  __device__ __forceinline__ float div_by_constant(float value, float divisor, float reciprocal) {
    const float quotient = exact::mul(value, reciprocal);
    return exact::fma(exact::fma(-quotient, divisor, value), reciprocal, quotient);
  }

  /// Operands that are not rare are not subnormal.
  __device__ __forceinline__ float flush_subnormal(float a) { return a; }
  __device__ __forceinline__ float flush_root(float root, float) { return root; }

  /// Takes note of what the rule made of a quotient: NaN and what lies near the largest floats is
  /// rare.
  __device__ __forceinline__ void expect_ordinary(float result) {
    is_odd_ |= !(fabsf(result) < quant::device::kOrdinaryLimit);
  }

  /// Whether some operand was outside of what these operations are exact for; all results are void
  /// then. Bounds are kept over a whole run and compared once.
  [[nodiscard]] __device__ __forceinline__ bool is_rare() const {
    return is_odd_ | (least_radicand_ < exact::bits(0x1p-100f)) |
           (largest_radicand_ > exact::bits(0x1p60f)) | (least_dividend_ < 0x1p-80f);
  }

 private:
  uint32_t least_radicand_ = ~0u;
  uint32_t largest_radicand_ = 0;
  float least_dividend_ = __builtin_huge_valf();
  bool is_odd_ = false;
};

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_FAST_ARITHMETIC_CUH_
