// State format bf16: two bytes per element, rounded to nearest even. For state that changes by a
// fair part of itself at each step (first moments, momentum); second moments need bf16_stochastic.
#ifndef OUTBOARD_QUANT_BF16_H_
#define OUTBOARD_QUANT_BF16_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/rounding.h"

namespace outboard::quant {

/// bf16, nearest even.
struct BF16 {
  static constexpr std::string_view kName = "bf16";
  static constexpr size_t kCodeBits = 16;
  static constexpr size_t kBlockElements = 0;
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = false;
  using Code = uint16_t;

  static OUTBOARD_HD float decode(Code code) { return f32_from_bf16(code); }
  static OUTBOARD_HD Code encode(float value, uint32_t /*random16*/) { return bf16_nearest(value); }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_BF16_H_
