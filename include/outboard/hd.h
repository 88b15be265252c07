// Arithmetic that rounds the same way everywhere: the operations from which rule formulas are
// written, for host and device code. In float each call is one correctly rounded fp32 operation
// that no compiler may contract or reorder; in double the same text is the test oracle. Nothing
// else belongs here.
#ifndef OUTBOARD_HD_H_
#define OUTBOARD_HD_H_

#include <bit>
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define OUTBOARD_HD __host__ __device__ __forceinline__
#else
#define OUTBOARD_HD inline
#endif

namespace outboard::exact {

#if defined(__CUDA_ARCH__)
OUTBOARD_HD float add(float a, float b) { return __fadd_rn(a, b); }
OUTBOARD_HD float sub(float a, float b) { return __fsub_rn(a, b); }
OUTBOARD_HD float mul(float a, float b) { return __fmul_rn(a, b); }
OUTBOARD_HD float div(float a, float b) { return __fdiv_rn(a, b); }
OUTBOARD_HD float sqrt(float a) { return __fsqrt_rn(a); }
OUTBOARD_HD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
OUTBOARD_HD float rint(float a) { return rintf(a); }
OUTBOARD_HD uint32_t bits(float a) { return __float_as_uint(a); }
OUTBOARD_HD float from_bits(uint32_t a) { return __uint_as_float(a); }
#else
OUTBOARD_HD float add(float a, float b) { return a + b; }
OUTBOARD_HD float sub(float a, float b) { return a - b; }
OUTBOARD_HD float mul(float a, float b) { return a * b; }
OUTBOARD_HD float div(float a, float b) { return a / b; }
OUTBOARD_HD float sqrt(float a) { return std::sqrt(a); }
OUTBOARD_HD float fma(float a, float b, float c) { return std::fma(a, b, c); }
OUTBOARD_HD float rint(float a) { return std::rint(a); }
OUTBOARD_HD uint32_t bits(float a) { return std::bit_cast<uint32_t>(a); }
OUTBOARD_HD float from_bits(uint32_t a) { return std::bit_cast<float>(a); }
#endif

OUTBOARD_HD double add(double a, double b) { return a + b; }
OUTBOARD_HD double sub(double a, double b) { return a - b; }
OUTBOARD_HD double mul(double a, double b) { return a * b; }
OUTBOARD_HD double div(double a, double b) { return a / b; }
OUTBOARD_HD double sqrt(double a) { return ::sqrt(a); }
OUTBOARD_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }

/// The larger of two values; a NaN in `b` is returned, so that it stays visible.
template <class T>
OUTBOARD_HD T max(T a, T b) {
  return a > b ? a : b;
}

/// Moves `average` towards `value` by `weight`: exactly `value` at weight 1, exactly `average` when
/// both are equal.
template <class T>
OUTBOARD_HD T lerp(T average, T value, T weight) {
  const T difference = sub(value, average);
  const T magnitude = weight < T(0) ? -weight : weight;
  return magnitude < T(0.5) ? fma(weight, difference, average)
                            : fma(sub(weight, T(1)), difference, value);
}

/// lerp for a weight in [0, 0.5), without the choice.
template <class T>
OUTBOARD_HD T lerp_below_half(T average, T value, T weight) {
  return fma(weight, sub(value, average), average);
}

/// Exponential average of squares: fma(fl(one_minus_beta * g), g, fl(beta * v)).
template <class T>
OUTBOARD_HD T ema_of_squares(T average, T gradient, T beta, T one_minus_beta) {
  return fma(mul(one_minus_beta, gradient), gradient, mul(beta, average));
}

/// div(value, divisor) without a divider, given the rounded reciprocal of the divisor: the quotient
/// by the reciprocal, corrected by its own remainder, is the correctly rounded one (Markstein:
/// Computation of elementary functions on the IBM RISC System/6000 processor, 1990) for every value
/// that is not subnormal and no divisor far from 1. In double an ordinary division.
OUTBOARD_HD float div_by_constant(float value, float divisor, float reciprocal) {
  const float quotient = mul(value, reciprocal);
  const float remainder = fma(-quotient, divisor, value);
  return bits(value) == 0x7F800000u ? quotient : fma(remainder, reciprocal, quotient);
}
OUTBOARD_HD double div_by_constant(double value, double divisor, double) { return value / divisor; }

/// A subnormal becomes +0. Without this a decaying average sticks at a few units of 2^-149 for
/// ever.
OUTBOARD_HD float flush_subnormal(float a) { return (bits(a) & 0x7F800000u) == 0 ? 0.0f : a; }
OUTBOARD_HD double flush_subnormal(double a) {
  const double magnitude = a < 0 ? -a : a;
  return magnitude < 1.1754943508222875e-38 ? 0.0 : a;
}

/// The root of flush_subnormal(square), given the root of `square`.
OUTBOARD_HD float flush_root(float root, float square) {
  return (bits(square) & 0x7F800000u) == 0 ? 0.0f : root;
}
OUTBOARD_HD double flush_root(double root, double square) {
  return square < 1.1754943508222875e-38 ? 0.0 : root;
}

/// The operations that a rule may be given in another form; see outboard/rule.h.
struct Arithmetic {
  template <class T>
  OUTBOARD_HD T sqrt(T a) {
    return exact::sqrt(a);
  }
  template <class T>
  OUTBOARD_HD T div(T a, T b) {
    return exact::div(a, b);
  }
  template <class T>
  OUTBOARD_HD T div_by_constant(T value, T divisor, T reciprocal) {
    return exact::div_by_constant(value, divisor, reciprocal);
  }
  template <class T>
  OUTBOARD_HD T flush_subnormal(T a) {
    return exact::flush_subnormal(a);
  }
  template <class T>
  OUTBOARD_HD T flush_root(T root, T square) {
    return exact::flush_root(root, square);
  }
};

}  // namespace outboard::exact

#endif  // OUTBOARD_HD_H_
