// State format bf16_stochastic: two bytes per element, rounded up or down at random so that the
// mean is exact. With nearest rounding a second moment stalls: 0.001 * v is below half a unit in
// the last place of bf16.
#ifndef OUTBOARD_QUANT_BF16_STOCHASTIC_H_
#define OUTBOARD_QUANT_BF16_STOCHASTIC_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/rounding.h"

namespace outboard::quant {

/// bf16, unbiased. `random16` comes from outboard::random16 for the element's index in the whole
/// parameter.
struct BF16Stochastic {
  static constexpr std::string_view kName = "bf16_stochastic";
  static constexpr size_t kCodeBits = 16;
  static constexpr size_t kBlockElements = 0;
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = true;
  using Code = uint16_t;

  static OUTBOARD_HD float decode(Code code) { return f32_from_bf16(code); }
  static OUTBOARD_HD Code encode(float value, uint32_t random16) {
    return bf16_stochastic(value, random16);
  }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_BF16_STOCHASTIC_H_
