// The roundings of rounding.h for pairs of elements on the device, in as few instructions as the
// hardware allows: AdamW with bf16 arrays is bound by instructions before it is bound by memory.
// Bits are those of rounding.h, except that a NaN may carry another payload.
#ifndef OUTBOARD_QUANT_DEVICE_ROUNDING_CUH_
#define OUTBOARD_QUANT_DEVICE_ROUNDING_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "quant/rounding.h"

namespace outboard::quant::device {

/// Exact, like quant::f32_from_f16, by the hardware's converter.
__device__ __forceinline__ float f32_from_f16(uint16_t code) {
  return __half2float(__ushort_as_half(code));
}

/// Two bf16 codes, `low` in the lower half of the word; nearest even.
__device__ __forceinline__ uint32_t bf16_pair_nearest(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
}

/// Bits of `value` plus `draw`, whose upper half is the code that quant::bf16_stochastic gives.
/// From 0x7F7F0000 on that is the plain upper half: the largest finite codes must not grow,
/// infinities and NaN must stay what they are.
__device__ __forceinline__ uint32_t add_draw(float value, uint32_t draw) {
  const uint32_t b = exact::bits(value);
  return b + ((b & kMagnitudeMask) < 0x7F7F0000u ? draw : 0u);
}

/// Two bf16 codes, rounded stochastically by the halves of `draws`.
__device__ __forceinline__ uint32_t bf16_pair_stochastic(float low, float high, uint32_t draws) {
  return __byte_perm(add_draw(low, draws & 0xFFFFu), add_draw(high, draws >> 16), 0x7632);
}

/// Two split values: words of high and of low halves.
struct SplitPair {
  uint32_t high;
  uint32_t low;
};

__device__ __forceinline__ uint32_t splittable_bits(float value) {
  const uint32_t b = exact::bits(value);
  return value != value ? (b & kSignMask) | 0x7FC00000u : b;
}

__device__ __forceinline__ SplitPair split_pair(float first, float second) {
  const uint32_t a = splittable_bits(first);
  const uint32_t b = splittable_bits(second);
  return {__byte_perm(a + 0x8000u, b + 0x8000u, 0x7632), __byte_perm(a, b, 0x5410)};
}

/// Bits whose upper 24 split8_f32 cuts.
__device__ __forceinline__ uint32_t add_split8_draw(float value, uint32_t draw) {
  const uint32_t b = splittable_bits(value);
  return b + ((b & kMagnitudeMask) < kLastSplit8Bits ? draw & 0xFFu : 0u);
}

/// As split_pair for split8_f32, rounded by the halves of `draws`; `low` holds two bytes, and
/// nothing of use above them.
__device__ __forceinline__ SplitPair split8_pair(float first, float second, uint32_t draws) {
  const uint32_t a = add_split8_draw(first, draws);
  const uint32_t b = add_split8_draw(second, draws >> 16);
  return {__byte_perm(a + 0x8000u, b + 0x8000u, 0x7632), __byte_perm(a, b, 0x0051)};
}

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_DEVICE_ROUNDING_CUH_
