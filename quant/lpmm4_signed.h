// State format lpmm4_signed: the first moment of lpmm's 4-bit AdamW and the buffer of its SGD, with
// one scale for each group of elements (its default, 128; rank-1 and per-dimension scales are not
// groups and need scales of another shape than this library's blocks). Scales of groups with an
// infinity or NaN are ours: NaN.
#ifndef OUTBOARD_QUANT_LPMM4_SIGNED_H_
#define OUTBOARD_QUANT_LPMM4_SIGNED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/dynamic_map4.h"
#include "quant/peer_scales.h"

namespace outboard::quant {

/// The signed dynamic map of 4 bits, ties to the lower code. Zero is code 7.
struct Lpmm4Signed : DynamicFormat4<Lpmm4Signed, NibbleOrder::kEvenLow> {
  static constexpr std::string_view kName = "lpmm4_signed";
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 4> kBlockSizes{64, 128, 256, 2048};

  /// The least floats with the codes 1 ... 15: those above fl(fl(low + high) / 2).
  static OUTBOARD_HD constexpr Table16 thresholds() {
    return search_tree({{-0.7749999f, -0.54999995f, -0.32499996f, -0.14499998f, -0.054999996f,
                         -0.019f, -0.0027499998f, 0.0027500002f, 0.019000003f, 0.055000003f,
                         0.14500001f, 0.32500002f, 0.5500001f, 0.77500004f, 0.9437501f}});
  }

  static OUTBOARD_HD float scale(float largest) { return unbounded_scale(largest); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_LPMM4_SIGNED_H_
