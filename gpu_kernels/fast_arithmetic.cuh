// The dear operations of a rule without branches, so that the elements of a run overlap: exact for
// the operands that occur, and a flag for the others, whose run is then updated again the plain
// way.
#ifndef OUTBOARD_GPU_KERNELS_FAST_ARITHMETIC_CUH_
#define OUTBOARD_GPU_KERNELS_FAST_ARITHMETIC_CUH_

#include "outboard/hd.h"

namespace outboard::gpu {

/// What a rule's update_usual() computes with; see outboard/rule.h. The roots and quotients are
/// those that the compiler's own correctly rounded operations form when no operand is special; it
/// guards each of them with a branch, which keeps eight elements from being worked on at a time.
struct FastArithmetic {
  /// Some operand was outside of what these operations are exact for; all results are void.
  bool is_rare = false;

  /// The root of 2^-100 <= a <= 2^60.
  __device__ __forceinline__ float sqrt(float a) {
    is_rare |= !(a >= 0x1p-100f) | !(a <= 0x1p60f);  // no branches
    float reciprocal;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(a));
    const float root = exact::mul(a, reciprocal);
    const float remainder = exact::fma(-root, root, a);
    return exact::fma(remainder, exact::mul(reciprocal, 0.5f), root);
  }

  /// The quotient of 2^-80 <= |a| <= 2^60 by 2^-60 <= b <= 2^45, as exact::div. Within these bounds
  /// the quotient is normal and the remainder exact.
  __device__ __forceinline__ float div(float a, float b) {
    is_rare |= !(fabsf(a) >= 0x1p-80f) | !(fabsf(a) <= 0x1p60f);
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
};

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_FAST_ARITHMETIC_CUH_
