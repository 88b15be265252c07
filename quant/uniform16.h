// The 16 levels 1/16, 2/16, ... 1 of torchao's and lpmm's 4-bit second moments: no zero, so that no
// update divides by the root of nothing. Formats add their scale and what happens at ties.
#ifndef OUTBOARD_QUANT_UNIFORM16_H_
#define OUTBOARD_QUANT_UNIFORM16_H_

#include <cstddef>
#include <cstdint>

#include "outboard/hd.h"
#include "quant/block_format.h"

namespace outboard::quant {

enum class UniformTies : uint8_t { kUp, kDown };

/// What formats with these levels share.
template <UniformTies kTiesOf, NibbleOrder kOrder>
struct UniformFormat16 {
  static constexpr size_t kCodeBits = 4;
  static constexpr bool kIsSigned = false;
  static constexpr bool kIsStochastic = false;
  static constexpr UniformTies kTies = kTiesOf;
  static constexpr NibbleOrder kNibbleOrder = kOrder;
  using Code = uint8_t;

  struct Encoder {
    float scale;
    OUTBOARD_HD explicit Encoder(float s) : scale(s) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      const float sixteenths = exact::mul(exact::div(value, scale), 16.0f);
      const auto whole = static_cast<int32_t>(sixteenths);
      const float rest = exact::sub(sixteenths, static_cast<float>(whole));  // exact
      const bool is_up = kTiesOf == UniformTies::kUp ? rest >= 0.5f : rest > 0.5f;
      const int32_t code = whole - 1 + (is_up ? 1 : 0);
      return static_cast<Code>(code < 0 ? 0 : code > 15 ? 15 : code);
    }
  };

  struct Decoder {
    float scale;
    OUTBOARD_HD explicit Decoder(float s) : scale(s) {}
    OUTBOARD_HD float operator()(Code code) const {
      return exact::mul(exact::mul(static_cast<float>(code + 1), 0.0625f), scale);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_UNIFORM16_H_
