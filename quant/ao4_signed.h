// State format ao4_signed: the first moment of torchao's 4-bit optimizers. Codes and scales are
// those of torchao without torch.compile, which leaves some scales a unit in the last place off.
// Scales of blocks with an infinity or NaN are ours: NaN.
#ifndef OUTBOARD_QUANT_AO4_SIGNED_H_
#define OUTBOARD_QUANT_AO4_SIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/dynamic_map4.h"
#include "quant/peer_scales.h"

namespace outboard::quant {

/// The signed dynamic map of 4 bits; the distance to the lower level decides. Zero is code 7.
struct Ao4Signed : DynamicFormat4<Ao4Signed, NibbleOrder::kEvenHigh> {
  static constexpr std::string_view kName = "ao4_signed";
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 1> kBlockSizes{128};

  /// The least floats with the codes 1 ... 15: those from which on fl(x - low) >= fl(fl(high - low)
  /// / 2).
  static OUTBOARD_HD constexpr Table16 thresholds() {
    return search_tree(
        {{-0.775f, -0.55f, -0.325f, -0.145f, -0.055f, -0.019000001f, -0.00275f, 0.00275f,
          0.019000001f, 0.055000003f, 0.145f, 0.32500002f, 0.55f, 0.77500004f, 0.94375f}});
  }

  static OUTBOARD_HD float scale(float largest) { return floored_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_AO4_SIGNED_H_
