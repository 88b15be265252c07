// The 8-bit dynamic map that bitsandbytes and torchao share, and the way from a value to its code.
// The map has seven decades; decade i holds w = 2^i magnitudes (2^(i+1) where there is no sign),
// the centres of w equal parts of [0.1, 1] times 10^(i - 6); 0 and 1 complete it. With a sign the
// codes are 127 plus or minus the number of the magnitude, and there is no -1. Everything here is
// computed by the compiler, in the order of roundings that gives the peers' tables bit by bit;
// checksums say so. The formats add scales and what happens at ties.
#ifndef OUTBOARD_QUANT_DYNAMIC_MAP_H_
#define OUTBOARD_QUANT_DYNAMIC_MAP_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "outboard/hd.h"
#include "quant/rounding.h"

namespace outboard::quant {

/// Magnitudes of a map in rising order.
struct DynamicLevels {
  float at[256];
  int count;  ///< 129 with a sign, 256 without
};

/// The sum is exact in fp64, so that it rounds once: fma for the short factors used here.
constexpr float fused(float a, int b, float c) {
  return static_cast<float>(static_cast<double>(a) * b + static_cast<double>(c));
}

/// The magnitudes of the signed or the unsigned map.
constexpr DynamicLevels dynamic_levels(bool is_signed) {
  constexpr float kDecades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  DynamicLevels levels = {.at = {0.0f}, .count = 1};
  for (int decade = 0; decade < 7; ++decade) {
    const int width = is_signed ? 1 << decade : 2 << decade;
    const float step = (1.0f - 0.1f) / static_cast<float>(width);
    const auto edge = [&](int k) {
      return k < (width + 1) / 2 ? fused(step, k, 0.1f) : fused(-step, width - k, 1.0f);
    };
    for (int k = 0; k < width; ++k) {
      const float centre = (edge(k) + edge(k + 1)) * 0.5f;
      levels.at[levels.count++] = centre * kDecades[decade];
    }
  }
  levels.at[levels.count++] = 1.0f;
  return levels;
}

/// A level for each code.
struct DynamicTable {
  float at[256];
};

constexpr DynamicTable dynamic_table(bool is_signed) {
  const DynamicLevels levels = dynamic_levels(is_signed);
  DynamicTable table = {};
  for (int code = 0; code < 256; ++code) {
    if (!is_signed) {
      table.at[code] = levels.at[code];
    } else {
      table.at[code] = code < 127 ? -levels.at[127 - code] : levels.at[code - 127];
    }
  }
  return table;
}

/// The table indexed by code: kDynamicTable<true> is the signed map.
template <bool kIsSigned>
inline constexpr DynamicTable kDynamicTable = dynamic_table(kIsSigned);

/// CRC-32 of the 1,024 little-endian bytes of a table.
constexpr uint32_t checksum(const DynamicTable& table) {
  uint32_t crc = ~0u;
  for (const float level : table.at) {
    const auto word = std::bit_cast<uint32_t>(level);
    for (int bit = 0; bit < 32; ++bit) {
      crc = (crc >> 1) ^ (((crc ^ (word >> bit)) & 1u) != 0 ? 0xEDB88320u : 0u);
    }
  }
  return ~crc;
}
static_assert(checksum(kDynamicTable<true>) == 0x1B137AEBu, "the peers' signed map");
static_assert(checksum(kDynamicTable<false>) == 0xE871278Fu, "the peers' unsigned map");

/// Where rounding goes up between two neighbouring magnitudes.
enum class DynamicTies : uint8_t {
  kEven,     ///< above fl(fl(low + high) / 2), and at it where the upper code is even
  kDistance  ///< where fl(x - low) >= fl(fl(high - low) / 2), for signed x
};

/// The least float that is rounded to `high` instead of `low`, as bits. `upper` is the number of
/// the level `high`; `sign` is -1 for the negative side, where magnitudes fall as values rise.
constexpr uint32_t dynamic_threshold(const DynamicLevels& levels, int upper, DynamicTies ties,
                                     bool is_signed, int sign) {
  const float low = levels.at[upper - 1];
  const float high = levels.at[upper];
  const auto middle = std::bit_cast<uint32_t>((low + high) * 0.5f);
  if (ties == DynamicTies::kEven) {
    const int upper_code = is_signed ? 127 + upper : upper;  // on the negative side as odd or even
    return middle + (upper_code % 2 == 0 ? 0 : 1);
  }
  const float half = (high - low) * 0.5f;
  uint32_t bits = middle - 4;  // the roundings shift it by a few units in the last place
  while (sign > 0 ? std::bit_cast<float>(bits) - low < half
                  : high - std::bit_cast<float>(bits) >= half) {
    ++bits;
  }
  return bits;
}

/// From a magnitude in [0, 1] to the number of its level in one look-up. The upper 16 bits of a
/// float choose a cell, and no cell holds more than one threshold. An entry has the number of the
/// level at the cell's beginning (8 bits from bit 24), by how much the threshold is higher for
/// negative values (2 bits from bit 20), and how many of the lower 16 bits' values are below the
/// threshold (17 bits; all 65536 where there is none).
struct DynamicCells {
  static constexpr int kFirst = 0x3400;  ///< 2^-23; all below is nearest to zero
  static constexpr int kLast = 0x3F80;   ///< 1
  static constexpr uint32_t kNone = 0x10000u;
  uint32_t at[kLast - kFirst + 1];
};

constexpr DynamicCells dynamic_cells(bool is_signed, DynamicTies ties) {
  const DynamicLevels levels = dynamic_levels(is_signed);
  DynamicCells cells = {};
  int next = 1;
  for (int cell = DynamicCells::kFirst; cell <= DynamicCells::kLast; ++cell) {
    uint32_t entry = static_cast<uint32_t>(next - 1) << 24 | DynamicCells::kNone;
    if (next < levels.count) {
      const uint32_t positive = dynamic_threshold(levels, next, ties, is_signed, 1);
      // There is no -1, and so no threshold before it.
      const bool is_symmetric = !is_signed || next == levels.count - 1;
      const uint32_t negative =
          is_symmetric ? positive : dynamic_threshold(levels, next, ties, is_signed, -1);
      if (positive >> 16 == static_cast<uint32_t>(cell)) {
        entry = static_cast<uint32_t>(next - 1) << 24 | (negative - positive) << 20 |
                (positive & 0xFFFFu);
        ++next;
      }
    }
    cells.at[cell - DynamicCells::kFirst] = entry;
  }
  return cells;
}

template <bool kIsSigned, DynamicTies kTies>
inline constexpr DynamicCells kDynamicCells = dynamic_cells(kIsSigned, kTies);

/// The level of a code. The copy inside the function is what device code can read.
template <bool kIsSigned>
OUTBOARD_HD float dynamic_level(uint32_t code) {
  static constexpr DynamicTable kTable = kDynamicTable<kIsSigned>;
  return kTable.at[code];
}

/// The number of the level that the quotient `x` in [-1, 1] is rounded to, by magnitude; that of
/// the unsigned map is 0 for x < 0.
template <bool kIsSigned, DynamicTies kTies>
OUTBOARD_HD int32_t dynamic_index(float x) {
  static constexpr DynamicCells kCells = kDynamicCells<kIsSigned, kTies>;
  const uint32_t sign = exact::bits(x) >> 31;
  const uint32_t b = kIsSigned ? exact::bits(x) & kMagnitudeMask : exact::bits(x);
  int32_t cell = static_cast<int32_t>(b) >> 16;
  cell = cell < DynamicCells::kFirst ? DynamicCells::kFirst : cell;
  cell = cell > DynamicCells::kLast ? DynamicCells::kLast : cell;
  const uint32_t entry = kCells.at[cell - DynamicCells::kFirst];
  uint32_t below = entry & 0x1FFFFu;
  if (kTies == DynamicTies::kDistance) below += sign * ((entry >> 20) & 3u);
  return static_cast<int32_t>((entry >> 24) + ((b & 0xFFFFu) >= below ? 1u : 0u));
}

/// The code of the signed map from the number of a level and the value's sign. `least` is the least
/// number of a negative value.
OUTBOARD_HD uint8_t dynamic_signed_code(int32_t index, bool is_negative, int32_t least) {
  if (!is_negative) return static_cast<uint8_t>(127 + index);
  index = index < least ? least : index;
  return static_cast<uint8_t>(index > 127 ? 0 : 127 - index);
}

/// What formats with this map share. A format adds its name, its block lengths and its scale.
/// kLeastNegative: the least number of the level of a negative value.
template <bool kSigned, DynamicTies kTiesOf, int kLeast>
struct DynamicFormat {
  static constexpr size_t kCodeBits = 8;
  static constexpr bool kIsSigned = kSigned;
  static constexpr bool kIsStochastic = false;
  static constexpr DynamicTies kTies = kTiesOf;
  static constexpr int kLeastNegative = kLeast;
  using Code = uint8_t;

  /// The code of a value that is `x` times the scale.
  static OUTBOARD_HD Code code_of(float x) {
    const int32_t index = dynamic_index<kSigned, kTiesOf>(x);
    if (!kSigned) return static_cast<Code>(index);
    return dynamic_signed_code(index, exact::bits(x) >> 31 != 0, kLeast);
  }

  struct Encoder {
    float scale;
    OUTBOARD_HD explicit Encoder(float s) : scale(s) {}
    OUTBOARD_HD Code operator()(float value, uint32_t /*random16*/) const {
      return code_of(exact::div(value, scale));
    }
  };

  struct Decoder {
    float scale;
    OUTBOARD_HD explicit Decoder(float s) : scale(s) {}
    /// A product whose -0 became +0: fresh memory, code 0 with scale 0, reads as +0.
    OUTBOARD_HD float operator()(Code code) const {
      return exact::fma(dynamic_level<kSigned>(code), scale, 0.0f);
    }
  };
};

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_DYNAMIC_MAP_H_
