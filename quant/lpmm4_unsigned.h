// State format lpmm4_unsigned: the second moment of lpmm's 4-bit AdamW as its code sets it without
// a configuration file ("power-1", groups of 128); see lpmm4_signed.h. A group of zeros has the
// codes 0 and scale 0, where lpmm computes 0 / 0 and stores 15; both read as zeros.
#ifndef OUTBOARD_QUANT_LPMM4_UNSIGNED_H_
#define OUTBOARD_QUANT_LPMM4_UNSIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/peer_scales.h"
#include "quant/uniform16.h"

namespace outboard::quant {

/// Levels k / 16, ties to the lower code.
struct Lpmm4Unsigned : UniformFormat16<UniformTies::kDown, NibbleOrder::kEvenLow> {
  static constexpr std::string_view kName = "lpmm4_unsigned";
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 4> kBlockSizes{64, 128, 256, 2048};

  static OUTBOARD_HD float scale(float largest) { return unbounded_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_LPMM4_UNSIGNED_H_
