// State format ao8_signed: the first moment of torchao's 8-bit optimizers. Codes and scales are
// those of torchao without torch.compile, which leaves some scales a unit in the last place off.
// Scales of blocks with an infinity or NaN are ours: NaN.
#ifndef OUTBOARD_QUANT_AO8_SIGNED_H_
#define OUTBOARD_QUANT_AO8_SIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/dynamic_map.h"
#include "quant/peer_scales.h"

namespace outboard::quant {

/// The signed dynamic map; the distance to the lower level decides.
struct Ao8Signed : DynamicFormat<true, DynamicTies::kDistance, 0> {
  static constexpr std::string_view kName = "ao8_signed";
  static constexpr size_t kBlockElements = 256;
  static constexpr std::array<uint32_t, 1> kBlockSizes{256};

  static OUTBOARD_HD float scale(float largest) { return floored_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_AO8_SIGNED_H_
