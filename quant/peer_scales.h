// The scales of formats that store what another library stores: the largest magnitude as it is, or
// not below that library's floor. Blocks with an infinity or NaN read as NaN in all of them.
#ifndef OUTBOARD_QUANT_PEER_SCALES_H_
#define OUTBOARD_QUANT_PEER_SCALES_H_

#include "outboard/hd.h"
#include "quant/rounding.h"

namespace outboard::quant {

/// The largest magnitude, however small; NaN for an infinity or NaN.
OUTBOARD_HD float unbounded_scale(float largest) {
  const bool is_finite = (exact::bits(largest) & kInfinityBits) != kInfinityBits;
  return is_finite ? largest : exact::from_bits(0x7FC00000u);
}

/// The same, and at least torchao's floor: its blocks of zeros have this scale.
OUTBOARD_HD float floored_scale(float largest) {
  constexpr float kFloor = 1e-12f;
  return unbounded_scale(largest < kFloor ? kFloor : largest);
}

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_PEER_SCALES_H_
