// State format root8s: root8 with a random choice between the two neighbouring levels, such that
// the mean of the root is exact. Slow averages keep moving where nearest rounding would hold them.
#ifndef OUTBOARD_QUANT_ROOT8S_H_
#define OUTBOARD_QUANT_ROOT8S_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/root8.h"

namespace outboard::quant {

/// Squares of the root, stochastic; never 0 for v > 0.
struct Root8Stochastic {
  static constexpr std::string_view kName = "root8s";
  static constexpr size_t kCodeBits = Root8::kCodeBits;
  static constexpr size_t kBlockElements = Root8::kBlockElements;
  static constexpr std::array<uint32_t, 3> kBlockSizes = Root8::kBlockSizes;
  static constexpr bool kIsSigned = false;
  static constexpr bool kIsStochastic = true;
  using Code = uint8_t;
  using Decoder = Root8::Decoder;

  static OUTBOARD_HD float scale(float largest) { return Root8::scale(largest); }

  // From z between k^2 and (k + 1)^2, up with probability (z - k^2) / (2 k + 1).
  struct Encoder {
    float factor;
    OUTBOARD_HD explicit Encoder(float scale) : factor(Root8::Encoder(scale).factor) {}
    OUTBOARD_HD Code operator()(float value, uint32_t random16) const {
      const float z = exact::mul(exact::sqrt(value), factor);
      const auto floor = static_cast<int32_t>(exact::sqrt(z));
      const int32_t below = floor < 254 ? floor : 254;
      const float gap = static_cast<float>(2 * below + 1);
      const float draw = exact::mul(static_cast<float>(random16), 0x1p-16f);
      const float excess = exact::sub(z, static_cast<float>(below * below));
      const int32_t index = below + (exact::mul(draw, gap) < excess ? 1 : 0);
      return static_cast<Code>(index == 0 && value > 0.0f ? 1 : index);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_ROOT8S_H_
