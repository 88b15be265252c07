// State format e4m3_root: a byte per element, for second moments: the roots r = sqrt(v) as 8-bit
// floats of a block whose largest root becomes 448. Rounded at random, because a step moves r by
// far less than the gap between two codes, and nearest rounding would hold it. v > 0 never becomes
// 0: with v itself in e4m3 all that is below 2^-19 of the largest does, and those weights explode.
#ifndef OUTBOARD_QUANT_E4M3_ROOT_H_
#define OUTBOARD_QUANT_E4M3_ROOT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/e4m3.h"

namespace outboard::quant {

/// 8-bit floats of the root, stochastic; scales are roots, too.
struct E4M3Root {
  static constexpr std::string_view kName = "e4m3_root";
  static constexpr size_t kCodeBits = E4M3::kCodeBits;
  static constexpr size_t kBlockElements = E4M3::kBlockElements;
  static constexpr std::array<uint32_t, 3> kBlockSizes = E4M3::kBlockSizes;
  static constexpr bool kIsSigned = false;
  static constexpr bool kIsStochastic = true;
  using Code = uint8_t;

  static constexpr bool is_code(uint8_t code) { return code < 0x7F; }
  // The largest of the roots is the root of the largest.
  static OUTBOARD_HD float scale(float largest) { return plain_scale(exact::sqrt(largest)); }

  struct Encoder {
    float factor;
    OUTBOARD_HD explicit Encoder(float scale) : factor(E4M3::Encoder(scale).factor) {}
    OUTBOARD_HD Code operator()(float value, uint32_t random16) const {
      const Code code = e4m3_stochastic(exact::mul(exact::sqrt(value), factor), random16);
      return code == 0 && value > 0.0f ? 1 : code;
    }
  };

  struct Decoder {
    E4M3::Decoder root;
    OUTBOARD_HD explicit Decoder(float scale) : root(scale) {}
    OUTBOARD_HD float operator()(Code code) const {
      const float r = root(code);
      return exact::mul(r, r);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_E4M3_ROOT_H_
