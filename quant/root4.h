// State format root4: 4 bits per element, for second moments. The levels are ((c + 1) / 16)^2 s for
// the block's largest value s, so no element reads as zero; between two levels the choice is
// random, and such that the mean of 1 / sqrt(v), the factor of an update, is exact. With nearest
// rounding a second moment stalls: a step moves it by less than half a gap.
#ifndef OUTBOARD_QUANT_ROOT4_H_
#define OUTBOARD_QUANT_ROOT4_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/block_format.h"

namespace outboard::quant {

/// Where sqrt(value) lies among the roots of the 16 levels of a block with `scale`: level k of
/// 1 ... 16 is at k.
struct Root4Position {
  float factor;
  OUTBOARD_HD explicit Root4Position(float scale) : factor(exact::div(16.0f, exact::sqrt(scale))) {}
  OUTBOARD_HD float operator()(float value) const {
    const float position = exact::mul(exact::sqrt(value), factor);
    return position < 16.0f ? position : 16.0f;
  }
};

/// Squares without zero, stochastic: unbiased in 1 / sqrt(v) for values of at least scale / 256.
struct Root4 {
  static constexpr std::string_view kName = "root4";
  static constexpr size_t kCodeBits = 4;
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 3> kBlockSizes{64, 128, 256};
  static constexpr bool kIsSigned = false;
  static constexpr bool kIsStochastic = true;
  static constexpr NibbleOrder kNibbleOrder = NibbleOrder::kEvenLow;
  using Code = uint8_t;

  static OUTBOARD_HD float scale(float largest) { return plain_scale(largest); }

  // From position y, between k and k + 1, up with probability (k + 1) (y - k) / y: then the mean of
  // 1 / position is 1 / y. Below 1 the left side is negative: such values go to the first level.
  struct Encoder {
    Root4Position position;
    OUTBOARD_HD explicit Encoder(float scale) : position(scale) {}
    OUTBOARD_HD Code operator()(float value, uint32_t random16) const {
      const float y = position(value);
      const float below = y < 1.0f ? 1.0f : static_cast<float>(static_cast<int32_t>(y));
      const float draw = exact::mul(static_cast<float>(random16), 0x1p-16f);
      const float chance = exact::mul(exact::add(below, 1.0f), exact::sub(y, below));
      const bool is_up = exact::mul(draw, y) < chance;
      return static_cast<Code>(static_cast<int32_t>(below) - (is_up ? 0 : 1));
    }
  };

  struct Decoder {
    float unit;
    OUTBOARD_HD explicit Decoder(float scale) : unit(exact::mul(scale, 0x1p-8f)) {}
    OUTBOARD_HD float operator()(Code code) const {
      return exact::mul(static_cast<float>((code + 1) * (code + 1)), unit);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_ROOT4_H_
