// Accumulation and sums of squares, written once over xsimd batches and once in plain C++ for CPUs
// without fused multiply-add. The vector form is compiled for AVX2 + FMA by a target pragma around
// xsimd and itself, and chosen at run time; compilers without that pragma build the plain form only
// on x86. No Highway here.
#include "cpu_kernels/gradient_math.h"

// Everything from the standard library that xsimd includes, so that none of it falls under the
// pragma below.
#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "quant/rounding.h"

#if defined(__aarch64__) || (defined(__AVX2__) && defined(__FMA__))
#define OUTBOARD_VECTOR_ARCH xsimd::default_arch
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SSE3__)
#define OUTBOARD_VECTOR_ARCH xsimd::fma3<xsimd::avx2>
#define OUTBOARD_RAISES_TARGET 1
#include <immintrin.h>  // here, where it selects the target of each intrinsic by itself
#pragma GCC push_options
#pragma GCC target("avx2,fma")
// g++ before 13 reads ahead of the pragma and does not define what it stands for; xsimd selects by
// these names.
#define __SSE3__ 1
#define __SSSE3__ 1
#define __SSE4_1__ 1
#define __SSE4_2__ 1
#define __AVX__ 1
#define __AVX2__ 1
#define __FMA__ 1
#endif

#if defined(OUTBOARD_VECTOR_ARCH)
#include <xsimd/xsimd.hpp>
#endif

namespace outboard::cpu {
namespace {

constexpr size_t kLanes = 64;

#if defined(OUTBOARD_VECTOR_ARCH)
using Batch = xsimd::batch<float, OUTBOARD_VECTOR_ARCH>;

void add_vectors(const float* gradient, size_t elements, float* accumulated) {
  size_t i = 0;
  for (; i + Batch::size <= elements; i += Batch::size) {
    const Batch sum = Batch::load_unaligned(accumulated + i) + Batch::load_unaligned(gradient + i);
    sum.store_unaligned(accumulated + i);
  }
  for (; i < elements; ++i) accumulated[i] += gradient[i];
}

void add_squares_vectors(const float* values, size_t elements, float* sums) {
  size_t i = 0;
  for (; i + Batch::size <= elements; i += Batch::size) {
    const Batch x = Batch::load_unaligned(values + i);
    xsimd::fma(x, x, Batch::load_unaligned(sums + i)).store_unaligned(sums + i);
  }
  for (; i < elements; ++i) sums[i] = std::fma(values[i], values[i], sums[i]);
}

/// The 64 lanes of a segment whose length is a multiple of 64.
void square_lanes_vectors(const float* gradient, size_t elements, float* lanes) {
  constexpr size_t kBatches = kLanes / Batch::size;
  Batch sums[kBatches];
  for (size_t k = 0; k < kBatches; ++k) sums[k] = Batch(0.0f);
  for (size_t i = 0; i < elements; i += kLanes) {
    for (size_t k = 0; k < kBatches; ++k) {
      const Batch x = Batch::load_unaligned(gradient + i + k * Batch::size);
      sums[k] = xsimd::fma(x, x, sums[k]);
    }
  }
  for (size_t k = 0; k < kBatches; ++k) sums[k].store_unaligned(lanes + k * Batch::size);
}
#endif

}  // namespace
}  // namespace outboard::cpu

#if defined(OUTBOARD_RAISES_TARGET)
#pragma GCC pop_options
#undef __SSE3__
#undef __SSSE3__
#undef __SSE4_1__
#undef __SSE4_2__
#undef __AVX__
#undef __AVX2__
#undef __FMA__
#endif

namespace outboard::cpu {
namespace {

void add_portable(const float* gradient, size_t elements, float* accumulated) {
  for (size_t i = 0; i < elements; ++i) accumulated[i] += gradient[i];
}

void add_squares_portable(const float* values, size_t elements, float* sums) {
  for (size_t i = 0; i < elements; ++i) sums[i] = std::fma(values[i], values[i], sums[i]);
}

/// The order of square_lanes_vectors with the C library's fused multiply-add, which is exact on
/// every CPU.
void square_lanes_portable(const float* gradient, size_t elements, float* lanes) {
  std::fill_n(lanes, kLanes, 0.0f);
  for (size_t i = 0; i < elements; ++i) {
    lanes[i % kLanes] = std::fma(gradient[i], gradient[i], lanes[i % kLanes]);
  }
}

bool has_vectors() {
#if !defined(OUTBOARD_VECTOR_ARCH)
  return false;
#elif defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

struct Loops {
  void (*add)(const float*, size_t, float*);
  void (*add_squares)(const float*, size_t, float*);
  void (*square_lanes)(const float*, size_t, float*);
};

Loops choose(GradientLoops loops) {
#if defined(OUTBOARD_VECTOR_ARCH)
  if (loops == GradientLoops::kBest && has_vectors()) {
    return {&add_vectors, &add_squares_vectors, &square_lanes_vectors};
  }
#endif
  static_cast<void>(loops);
  return {&add_portable, &add_squares_portable, &square_lanes_portable};
}

/// As quant::f32_from_f16 without branches, so that compilers vectorise the loop around it:
/// multiplying the shifted pattern by 2^112 is exact for normals and subnormals.
float f32_from_f16(uint16_t code) {
  const uint32_t magnitude = code & 0x7FFFu;
  const uint32_t shifted = magnitude << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(shifted) * 0x1p112f);
  const uint32_t quiet = magnitude > 0x7C00u ? 0x00400000u : 0u;
  const uint32_t special = shifted | quant::kInfinityBits | quiet;
  const uint32_t sign = (code & 0x8000u) << 16;
  return std::bit_cast<float>(sign | (magnitude >= 0x7C00u ? special : finite));
}

const void* advance(const void* gradient, DType type, size_t elements) {
  return static_cast<const std::byte*>(gradient) + elements * bytes_of(type);
}

float halve_to_one(std::array<float, kLanes>& lanes) {
  for (size_t k = kLanes / 2; k > 0; k /= 2) {
    for (size_t i = 0; i < k; ++i) lanes[i] = lanes[i] + lanes[i + k];
  }
  return lanes[0];
}

}  // namespace

void widen(const void* gradient, DType type, size_t elements, float* widened) {
  if (type == DType::kF32) {
    std::memcpy(widened, gradient, elements * sizeof(float));
    return;
  }
  const auto* codes = static_cast<const uint16_t*>(gradient);
  if (type == DType::kBF16) {
    for (size_t i = 0; i < elements; ++i) widened[i] = quant::f32_from_bf16(codes[i]);
  } else {
    for (size_t i = 0; i < elements; ++i) widened[i] = f32_from_f16(codes[i]);
  }
}

void accumulate(const void* gradient, DType type, size_t elements, float* accumulated,
                GradientLoops loops) {
  const auto add = choose(loops).add;
  if (type == DType::kF32) return add(static_cast<const float*>(gradient), elements, accumulated);
  float wide[kTileElements];
  for (size_t i = 0; i < elements; i += kTileElements) {
    const size_t count = std::min(kTileElements, elements - i);
    widen(advance(gradient, type, i), type, count, wide);
    add(wide, count, accumulated + i);
  }
}

void add_squares(const float* values, size_t elements, float* sums, GradientLoops loops) {
  choose(loops).add_squares(values, elements, sums);
}

void sum_of_squares(const void* gradient, DType type, size_t elements, float* sums,
                    GradientLoops loops) {
  const auto square_lanes = choose(loops).square_lanes;
  alignas(64) float wide[kNormSegmentElements];
  std::array<float, kLanes> lanes;
  for (size_t first = 0; first < elements; first += kNormSegmentElements) {
    const size_t count = std::min(kNormSegmentElements, elements - first);
    const void* segment = advance(gradient, type, first);
    const auto* values = static_cast<const float*>(segment);
    const size_t padded = round_up(count, kLanes);
    if (type != DType::kF32 || padded != count) {
      widen(segment, type, count, wide);
      std::fill(wide + count, wide + padded, 0.0f);
      values = wide;
    }
    square_lanes(values, padded, lanes.data());
    sums[first / kNormSegmentElements] = halve_to_one(lanes);
  }
}

}  // namespace outboard::cpu
