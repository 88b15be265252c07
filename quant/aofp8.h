// State format aofp8: both moments of torchao's fp8 optimizers: 8-bit floats (e4m3) and the scale
// that makes the largest magnitude of a block 448. Codes and scales are those of torchao without
// torch.compile, which leaves some scales a unit in the last place off. Faithful to the peer also
// where that hurts: a second moment below 2.1e-6 of its block's largest is stored as 0, and an
// update that divides by its root can explode; root8 and e4m3_root cannot. Blocks with an infinity
// or NaN have a NaN scale.
#ifndef OUTBOARD_QUANT_AOFP8_H_
#define OUTBOARD_QUANT_AOFP8_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/float8.h"
#include "quant/peer_scales.h"

namespace outboard::quant {

/// Nearest, ties to even, of the quotient by the scale.
struct AoFP8 {
  static constexpr std::string_view kName = "aofp8";
  static constexpr size_t kCodeBits = 8;
  static constexpr size_t kBlockElements = 256;
  static constexpr std::array<uint32_t, 1> kBlockSizes{256};
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = false;
  using Code = uint8_t;

  static constexpr bool is_code(uint8_t code) { return (code & 0x7F) != 0x7F; }
  static OUTBOARD_HD float scale(float largest) {
    return exact::div(floored_scale(largest), kLargestE4M3);
  }

  struct Encoder {
    float scale;
    OUTBOARD_HD explicit Encoder(float s) : scale(s) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      return e4m3_nearest(exact::div(value, scale));
    }
  };

  struct Decoder {
    float scale;
    OUTBOARD_HD explicit Decoder(float s) : scale(s) {}
    OUTBOARD_HD float operator()(Code code) const { return exact::mul(f32_from_e4m3(code), scale); }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_AOFP8_H_
