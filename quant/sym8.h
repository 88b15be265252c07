// State format sym8: a byte per element, for signed state. The levels of a block with the largest
// magnitude s are sign(c) (c / 127)^2 s for c in -127 ... 127: fine near zero, where most of a
// moment lies, and every value goes to the nearest level.
#ifndef OUTBOARD_QUANT_SYM8_H_
#define OUTBOARD_QUANT_SYM8_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/block_format.h"
#include "quant/companding.h"

namespace outboard::quant {

/// Signed squares, nearest in value. Codes are two's complement; -128 does not occur.
struct Sym8 {
  static constexpr std::string_view kName = "sym8";
  static constexpr size_t kCodeBits = 8;
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 3> kBlockSizes{64, 128, 256};
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = false;
  static constexpr float kLevels = 127.0f * 127.0f;
  using Code = uint8_t;

  static constexpr bool is_code(uint8_t code) { return code != 0x80; }
  static OUTBOARD_HD float scale(float largest) { return plain_scale(largest); }

  struct Encoder {
    float factor;
    OUTBOARD_HD explicit Encoder(float scale) : factor(exact::div(kLevels, scale)) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      const float magnitude = exact::from_bits(exact::bits(value) & kMagnitudeMask);
      const auto index = static_cast<int32_t>(nearest_square(exact::mul(magnitude, factor)));
      return static_cast<Code>(value < 0.0f ? -index : index);
    }
  };

  struct Decoder {
    float unit;
    OUTBOARD_HD explicit Decoder(float scale) : unit(exact::div(scale, kLevels)) {}
    OUTBOARD_HD float operator()(Code code) const {
      const int32_t c = static_cast<int8_t>(code);
      return exact::mul(static_cast<float>(c * (c < 0 ? -c : c)), unit);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_SYM8_H_
