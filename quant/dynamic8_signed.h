// State format dynamic8_signed: the 8-bit optimizer state of bitsandbytes' CUDA kernels for first
// moments (and, in its optimizers with one state, for that state). Codes and scales are those of
// bitsandbytes; it divides approximately, we exactly, so that within two units in the last place of
// a threshold its code may be the neighbouring one. Scales of blocks with an infinity or NaN are
// ours: NaN.
#ifndef OUTBOARD_QUANT_DYNAMIC8_SIGNED_H_
#define OUTBOARD_QUANT_DYNAMIC8_SIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/dynamic_map.h"
#include "quant/peer_scales.h"

namespace outboard::quant {

/// The signed dynamic map, ties to even codes. A negative value never has the code of zero.
struct Dynamic8Signed : DynamicFormat<true, DynamicTies::kEven, 1> {
  static constexpr std::string_view kName = "dynamic8_signed";
  static constexpr size_t kBlockElements = 256;
  static constexpr std::array<uint32_t, 2> kBlockSizes{256, 2048};

  static OUTBOARD_HD float scale(float largest) { return unbounded_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_DYNAMIC8_SIGNED_H_
