// State format ao4_unsigned: the second moment of torchao's 4-bit optimizers; see ao4_signed.h. It
// has no zero: a block of zeros has torchao's least scale, 1e-12, and reads as 1e-12 / 16.
#ifndef OUTBOARD_QUANT_AO4_UNSIGNED_H_
#define OUTBOARD_QUANT_AO4_UNSIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/peer_scales.h"
#include "quant/uniform16.h"

namespace outboard::quant {

/// Levels k / 16, ties up.
struct Ao4Unsigned : UniformFormat16<UniformTies::kUp, NibbleOrder::kEvenHigh> {
  static constexpr std::string_view kName = "ao4_unsigned";
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 1> kBlockSizes{128};

  static OUTBOARD_HD float scale(float largest) { return floored_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_AO4_UNSIGNED_H_
