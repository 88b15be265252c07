// State format root8: a byte per element, for second moments. It holds the root r = sqrt(v), which
// is what an update divides by, on the levels (c / 255)^2 s for the largest root s of the block.
// Code 0 is kept for v = 0: a small second moment is rounded up to the first level instead of
// vanishing, so that no update can explode.
#ifndef OUTBOARD_QUANT_ROOT8_H_
#define OUTBOARD_QUANT_ROOT8_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/block_format.h"
#include "quant/companding.h"

namespace outboard::quant {

/// Squares of the root, nearest in the root's value; never 0 for v > 0. Scales are roots, too.
struct Root8 {
  static constexpr std::string_view kName = "root8";
  static constexpr size_t kCodeBits = 8;
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 3> kBlockSizes{64, 128, 256};
  static constexpr bool kIsSigned = false;
  static constexpr bool kIsStochastic = false;
  static constexpr float kLevels = 255.0f * 255.0f;
  using Code = uint8_t;

  // The largest of the roots is the root of the largest.
  static OUTBOARD_HD float scale(float largest) { return plain_scale(exact::sqrt(largest)); }

  struct Encoder {
    float factor;
    OUTBOARD_HD explicit Encoder(float scale) : factor(exact::div(kLevels, scale)) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      const auto index =
          static_cast<int32_t>(nearest_square(exact::mul(exact::sqrt(value), factor)));
      return static_cast<Code>(index == 0 && value > 0.0f ? 1 : index);
    }
  };

  struct Decoder {
    float unit;
    OUTBOARD_HD explicit Decoder(float scale) : unit(exact::div(scale, kLevels)) {}
    OUTBOARD_HD float operator()(Code code) const {
      const float root = exact::mul(static_cast<float>(uint32_t{code} * code), unit);
      return exact::mul(root, root);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_ROOT8_H_
