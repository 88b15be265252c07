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

/// Magnitudes below this are numbers, and stay numbers when something is added to the bits that a
/// rounding drops.
inline constexpr float kOrdinaryLimit = 0x1.FEp127f;
inline constexpr uint32_t kOrdinaryBits = 0x7F7F0000u;  // the same

/// Bits of `value` plus `draw`, whose upper half is the code that quant::bf16_stochastic gives.
/// From 0x7F7F0000 on that is the plain upper half: the largest finite codes must not grow,
/// infinities and NaN must stay what they are.
/// kAreOrdinary, here and below: values are of magnitudes below kOrdinaryLimit.
template <bool kAreOrdinary = false>
__device__ __forceinline__ uint32_t add_draw(float value, uint32_t draw) {
  const uint32_t b = exact::bits(value);
  return b + (kAreOrdinary || (b & kMagnitudeMask) < kOrdinaryBits ? draw : 0u);
}

/// Two bf16 codes, rounded stochastically by the halves of `draws`.
template <bool kAreOrdinary = false>
__device__ __forceinline__ uint32_t bf16_pair_stochastic(float low, float high, uint32_t draws) {
  return __byte_perm(add_draw<kAreOrdinary>(low, draws & 0xFFFFu),
                     add_draw<kAreOrdinary>(high, draws >> 16), 0x7632);
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

template <bool kAreOrdinary = false>
__device__ __forceinline__ SplitPair split_pair(float first, float second) {
  const uint32_t a = kAreOrdinary ? exact::bits(first) : splittable_bits(first);
  const uint32_t b = kAreOrdinary ? exact::bits(second) : splittable_bits(second);
  return {__byte_perm(a + 0x8000u, b + 0x8000u, 0x7632), __byte_perm(a, b, 0x5410)};
}

/// As quant::join_f32 for the two elements of a word of high and one of low halves.
__device__ __forceinline__ void join_pair(const SplitPair& pair, float* values) {
  const auto low = static_cast<int32_t>(pair.low);
  const auto even = static_cast<uint32_t>(static_cast<int32_t>(static_cast<int16_t>(low)));
  values[0] = exact::from_bits((pair.high << 16) + even);
  values[1] = exact::from_bits((pair.high & 0xFFFF0000u) + static_cast<uint32_t>(low >> 16));
}

/// Bits whose upper 24 split8_f32 cuts.
template <bool kAreOrdinary>
__device__ __forceinline__ uint32_t add_split8_draw(float value, uint32_t draw) {
  if constexpr (kAreOrdinary) return exact::bits(value) + (draw & 0xFFu);
  const uint32_t b = splittable_bits(value);
  return b + ((b & kMagnitudeMask) < kLastSplit8Bits ? draw & 0xFFu : 0u);
}

/// As split_pair for split8_f32, rounded by the halves of `draws`; `low` holds two bytes, and
/// nothing of use above them.
template <bool kAreOrdinary = false>
__device__ __forceinline__ SplitPair split8_pair(float first, float second, uint32_t draws) {
  const uint32_t a = add_split8_draw<kAreOrdinary>(first, draws);
  const uint32_t b = add_split8_draw<kAreOrdinary>(second, draws >> 16);
  return {__byte_perm(a + 0x8000u, b + 0x8000u, 0x7632), __byte_perm(a, b, 0x0051)};
}

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_DEVICE_ROUNDING_CUH_
