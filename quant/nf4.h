// State format nf4: 4 bits per element, for signed state. The levels are the quantiles of a normal
// distribution (NormalFloat; Dettmers, Pagnoni, Holtzman, Zettlemoyer: QLoRA; NeurIPS 2023),
// relative to the block's largest magnitude; every value goes to the nearest level.
#ifndef OUTBOARD_QUANT_NF4_H_
#define OUTBOARD_QUANT_NF4_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "quant/block_format.h"
#include "quant/table16.h"

namespace outboard::quant {

/// NormalFloat with 16 levels; ties go to the lower code. Zero is code 7.
struct NF4 {
  static constexpr std::string_view kName = "nf4";
  static constexpr size_t kCodeBits = 4;
  static constexpr size_t kBlockElements = 128;
  static constexpr std::array<uint32_t, 3> kBlockSizes{64, 128, 256};
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = false;
  static constexpr NibbleOrder kNibbleOrder = NibbleOrder::kEvenLow;
  using Code = uint8_t;

  static OUTBOARD_HD constexpr Table16 levels() {
    return {{-1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
             -0.091050036f, 0.0f, 0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f,
             0.562617f, 0.72295684f, 1.0f}};
  }
  /// From threshold c on a value has at least code c + 1: the float above the midpoint of the
  /// levels c and c + 1. Nothing is above the last code.
  static OUTBOARD_HD constexpr Table16 sorted_thresholds() {
    return {{-0.8480963f, -0.61063284f, -0.45999524f, -0.3396794f, -0.23460738f, -0.13791172f,
             -0.045525014f, 0.039790154f, 0.120255254f, 0.20352127f, 0.2920138f, 0.38931257f,
             0.5016635f, 0.642787f, 0.8614785f, 2.0f}};
  }
  /// The same as a search tree.
  static OUTBOARD_HD constexpr Table16 thresholds() { return search_tree(sorted_thresholds()); }

  /// The number of thresholds <= n, for n in [-1, 1], is rint(n (kSlope + kCurvature |n|) + 7) or
  /// one more: the threshold c lies between c - 1/2 and c + 1/2 of this curve, at least 0.006 away
  /// from either. So codes need one comparison instead of four.
  static constexpr float kSlope = 11.8f;
  static constexpr float kCurvature = -4.35f;

  static OUTBOARD_HD float scale(float largest) { return plain_scale(largest); }

  struct Encoder {
    float factor;
    Lookup16 tree;
    OUTBOARD_HD explicit Encoder(float scale)
        : factor(exact::div(1.0f, scale)), tree(thresholds()) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      return static_cast<Code>(count_thresholds(tree, exact::mul(value, factor)));
    }
  };

  struct Decoder {
    float scale;
    Lookup16 table;
    OUTBOARD_HD explicit Decoder(float block_scale) : scale(block_scale), table(levels()) {}
    // The addition makes code 0 with scale 0, as fresh memory holds it, +0 instead of -0.
    OUTBOARD_HD float operator()(Code code) const { return exact::fma(table(code), scale, 0.0f); }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_NF4_H_
