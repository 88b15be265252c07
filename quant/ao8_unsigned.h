// State format ao8_unsigned: the second moment of torchao's 8-bit optimizers; see ao8_signed.h.
// Faithful to the peer also where that hurts: what is below 1.6e-7 of its block's largest value is
// stored as 0, and an update that divides by its root can explode; root8 cannot.
#ifndef OUTBOARD_QUANT_AO8_UNSIGNED_H_
#define OUTBOARD_QUANT_AO8_UNSIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/dynamic_map.h"
#include "quant/peer_scales.h"

namespace outboard::quant {

/// The unsigned dynamic map; the distance to the lower level decides.
struct Ao8Unsigned : DynamicFormat<false, DynamicTies::kDistance, 0> {
  static constexpr std::string_view kName = "ao8_unsigned";
  static constexpr size_t kBlockElements = 256;
  static constexpr std::array<uint32_t, 1> kBlockSizes{256};

  static OUTBOARD_HD float scale(float largest) { return floored_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_AO8_UNSIGNED_H_
