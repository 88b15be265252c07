// State format root4_nearest: the levels of root4, to the nearest root. For runs that must not draw
// random numbers; a second moment moves only in steps of more than half a gap.
#ifndef OUTBOARD_QUANT_ROOT4_NEAREST_H_
#define OUTBOARD_QUANT_ROOT4_NEAREST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/root4.h"

namespace outboard::quant {

/// Squares without zero, nearest in sqrt(v), ties to the even level.
struct Root4Nearest {
  static constexpr std::string_view kName = "root4_nearest";
  static constexpr size_t kCodeBits = Root4::kCodeBits;
  static constexpr size_t kBlockElements = Root4::kBlockElements;
  static constexpr std::array<uint32_t, 3> kBlockSizes = Root4::kBlockSizes;
  static constexpr bool kIsSigned = false;
  static constexpr bool kIsStochastic = false;
  static constexpr NibbleOrder kNibbleOrder = Root4::kNibbleOrder;
  using Code = uint8_t;
  using Decoder = Root4::Decoder;

  static OUTBOARD_HD float scale(float largest) { return Root4::scale(largest); }

  struct Encoder {
    Root4Position position;
    OUTBOARD_HD explicit Encoder(float scale) : position(scale) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      const auto level = static_cast<int32_t>(exact::rint(position(value)));
      return static_cast<Code>(level < 1 ? 0 : level - 1);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_ROOT4_NEAREST_H_
