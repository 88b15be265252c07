// The signed dynamic map of 4 bits, which torchao and lpmm share: dynamic_map.h with three decades
// of 1, 2 and 4 magnitudes, zero and 1, sixteen levels in all. Formats add their thresholds, their
// scale and the order of codes in a byte.
#ifndef OUTBOARD_QUANT_DYNAMIC_MAP4_H_
#define OUTBOARD_QUANT_DYNAMIC_MAP4_H_

#include <cstddef>
#include <cstdint>

#include "outboard/hd.h"
#include "quant/block_format.h"
#include "quant/table16.h"

namespace outboard::quant {

/// What formats with this map share. `Definition::thresholds()` is the search tree of the least
/// floats with the codes 1 ... 15.
template <class Definition, NibbleOrder kOrder>
struct DynamicFormat4 {
  static constexpr size_t kCodeBits = 4;
  static constexpr bool kIsSigned = true;
  static constexpr bool kIsStochastic = false;
  static constexpr NibbleOrder kNibbleOrder = kOrder;
  using Code = uint8_t;

  static OUTBOARD_HD constexpr Table16 levels() {
    return {{-0.8875f, -0.6625f, -0.4375f, -0.21249999f, -0.0775f, -0.032500003f, -0.0055f, 0.0f,
             0.0055f, 0.032500003f, 0.0775f, 0.21249999f, 0.4375f, 0.6625f, 0.8875f, 1.0f}};
  }

  struct Encoder {
    float scale;
    Lookup16 tree;
    OUTBOARD_HD explicit Encoder(float s) : scale(s), tree(Definition::thresholds()) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      return static_cast<Code>(count_thresholds(tree, exact::div(value, scale)));
    }
  };

  struct Decoder {
    float scale;
    Lookup16 table;
    OUTBOARD_HD explicit Decoder(float s) : scale(s), table(levels()) {}
    // The addition makes code 0 with scale 0, as fresh memory holds it, +0 instead of -0.
    OUTBOARD_HD float operator()(Code code) const { return exact::fma(table(code), scale, 0.0f); }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_DYNAMIC_MAP4_H_
