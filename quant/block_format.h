// What formats with blocks share: one fp32 scale for the elements of a block, formed from the
// largest magnitude among them. A block format (quant/<stem>.h) defines one struct:
//
//   struct Sym8 {
//     static constexpr std::string_view kName = "sym8";
//     static constexpr size_t kCodeBits = 8;              // 8, or 4: two codes in a byte
//     static constexpr size_t kBlockElements = 128;       // the default
//     static constexpr std::array<uint32_t, 3> kBlockSizes{64, 128, 256};
//     static constexpr bool kIsSigned = true;             // false: values are never negative
//     static constexpr bool kIsStochastic = false;
//     static constexpr NibbleOrder kNibbleOrder = ...;    // of 4-bit formats
//     using Code = uint8_t;                               // one element's code, low bits
//     static constexpr bool is_code(uint8_t code);        // only if some codes never occur
//     static OUTBOARD_HD float scale(float largest);      // what is stored for a block
//     struct Encoder { OUTBOARD_HD explicit Encoder(float scale);  // scale > 0
//                      OUTBOARD_HD Code operator()(float value, uint32_t random16) const; };
//     struct Decoder { OUTBOARD_HD explicit Decoder(float scale);
//                      OUTBOARD_HD float operator()(Code code) const; };
//   };
//
// These scalar functions define every bit that SIMD and device versions store.
#ifndef OUTBOARD_QUANT_BLOCK_FORMAT_H_
#define OUTBOARD_QUANT_BLOCK_FORMAT_H_

#include <cstdint>

#include "outboard/hd.h"
#include "quant/rounding.h"

namespace outboard::quant {

/// Which half of a byte holds the element of even index.
enum class NibbleOrder : uint8_t { kEvenLow, kEvenHigh };

/// Blocks whose largest magnitude is below this are stored as zeros: the factors made from a
/// smaller scale would overflow.
inline constexpr float kSmallestScale = 0x1p-100f;

/// The scale of most formats: the largest magnitude, 0 for a block of (almost) zeros, NaN for one
/// that holds an infinity or a NaN, so that the whole block reads as NaN: visible, never silent.
OUTBOARD_HD float plain_scale(float largest) {
  if ((exact::bits(largest) & kInfinityBits) == kInfinityBits) return exact::from_bits(0x7FC00000u);
  return largest < kSmallestScale ? 0.0f : largest;
}

/// The larger magnitude of two floats given by their bits without sign; a NaN wins.
OUTBOARD_HD uint32_t larger_magnitude(uint32_t a, uint32_t b) { return a > b ? a : b; }

/// Encodes the elements of a block with a given scale. In blocks of zeros and in those that read as
/// NaN, every element has the code of zero.
template <class Definition>
struct BlockEncoder {
  bool is_live;
  typename Definition::Encoder encoder;

  OUTBOARD_HD explicit BlockEncoder(float scale)
      : is_live(scale > 0.0f), encoder(is_live ? scale : 1.0f) {}
  OUTBOARD_HD typename Definition::Code operator()(float value, uint32_t random16) const {
    return encoder(is_live ? value : 0.0f, random16);
  }
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_BLOCK_FORMAT_H_
