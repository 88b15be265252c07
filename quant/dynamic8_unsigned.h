// State format dynamic8_unsigned: the 8-bit second moment of bitsandbytes' CUDA kernels; see
// dynamic8_signed.h. Faithful to the peer also where that hurts: what is below 1.6e-7 of its
// block's largest value is stored as 0, and an update that divides by its root can explode; root8
// cannot.
#ifndef OUTBOARD_QUANT_DYNAMIC8_UNSIGNED_H_
#define OUTBOARD_QUANT_DYNAMIC8_UNSIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/dynamic_map.h"
#include "quant/peer_scales.h"

namespace outboard::quant {

/// The unsigned dynamic map, ties to even codes.
struct Dynamic8Unsigned : DynamicFormat<false, DynamicTies::kEven, 0> {
  static constexpr std::string_view kName = "dynamic8_unsigned";
  static constexpr size_t kBlockElements = 256;
  static constexpr std::array<uint32_t, 2> kBlockSizes{256, 2048};

  static OUTBOARD_HD float scale(float largest) { return unbounded_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_DYNAMIC8_UNSIGNED_H_
