// State format e4m3: a byte per element, for signed state: 8-bit floats of a block whose largest
// magnitude becomes 448, the largest of them. The relative error is the same over 16 octaves, where
// sym8 is finer near the largest magnitude and coarser far below it.
#ifndef OUTBOARD_QUANT_E4M3_H_
#define OUTBOARD_QUANT_E4M3_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/block_format.h"
#include "quant/float8.h"

namespace outboard::quant {

/// 8-bit floats with a scale per block; nearest, ties to even.
struct E4M3 {
  static constexpr std::string_view kName = "e4m3";
  static constexpr size_t kCodeBits = 8;
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 3> kBlockSizes{64, 128, 256};
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = false;
  using Code = uint8_t;

  static constexpr bool is_code(uint8_t code) { return (code & 0x7F) != 0x7F; }
  static OUTBOARD_HD float scale(float largest) { return plain_scale(largest); }

  // The largest product is 448 (1 + 2^-22): it never rounds to NaN.
  struct Encoder {
    float factor;
    OUTBOARD_HD explicit Encoder(float scale) : factor(exact::div(kLargestE4M3, scale)) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      return e4m3_nearest(exact::mul(value, factor));
    }
  };

  struct Decoder {
    float unit;
    OUTBOARD_HD explicit Decoder(float scale) : unit(exact::div(scale, kLargestE4M3)) {}
    OUTBOARD_HD float operator()(Code code) const { return exact::mul(f32_from_e4m3(code), unit); }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_E4M3_H_
