// Codes of 4 bits on the device: eight of them in a word, the element of even index in the lower
// half of a byte.
#ifndef OUTBOARD_QUANT_NIBBLES_CUH_
#define OUTBOARD_QUANT_NIBBLES_CUH_

#include <cstdint>

namespace outboard::quant::device {

/// The word of eight codes. kExtra is added to each of them and is taken away again here, so that
/// a code may be the low bits of a float.
template <uint32_t kExtra>
__device__ __forceinline__ uint32_t pack_nibbles(const uint32_t* codes) {
  uint32_t word = 0u - kExtra * 0x11111111u;
#pragma unroll
  for (int i = 0; i < 8; ++i) word += codes[i] << (4 * i);
  return word;
}

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_NIBBLES_CUH_
