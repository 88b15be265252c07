// State format f32: four bytes per element, stored as is.
#ifndef OUTBOARD_QUANT_F32_H_
#define OUTBOARD_QUANT_F32_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "outboard/hd.h"

namespace outboard::quant {

/// The identity. Kernels work on such arrays in place.
struct F32 {
  static constexpr std::string_view kName = "f32";
  static constexpr size_t kCodeBits = 32;
  static constexpr size_t kBlockElements = 0;
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = false;
  using Code = float;

  static OUTBOARD_HD float decode(Code code) { return code; }
  static OUTBOARD_HD Code encode(float value, uint32_t /*random16*/) { return value; }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_F32_H_
