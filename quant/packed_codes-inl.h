// Four vectors of elements at a time, a group, and two orders of its elements.
//
// Pack order widens and narrows 16-bit numbers without crossing 128-bit lanes. Of a group of 4 x
// lanes elements, two vectors of 16-bit numbers hold the halves in memory order; the lower and the
// upper half of each of their 128-bit lanes, widened, are the four vectors of 32-bit numbers.
// Kernels that have no use for memory order between load and store pay one or two operations per
// vector for widening and narrowing instead of three to six.
//
// Memory order is for fp32 numbers beside codes of one byte; only the codes move.
//
// One version per target, for little-endian targets whose vectors have a known length.
#include "hwy/highway.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_PACKED_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_PACKED_CODES_INL_H_
#undef OUTBOARD_QUANT_PACKED_CODES_INL_H_
#else
#define OUTBOARD_QUANT_PACKED_CODES_INL_H_
#endif

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

inline constexpr size_t kLanes = hn::MaxLanes(FloatTag());
/// Elements of a group.
inline constexpr size_t kGroup = 4 * kLanes;

using PackedByteTag = hn::Repartition<uint8_t, FloatTag>;
using PackedWordTag = hn::Repartition<uint16_t, FloatTag>;
using PackedSignedWordTag = hn::Repartition<int16_t, FloatTag>;
using PackedPairTag = hn::Repartition<uint64_t, FloatTag>;
using PackedBytes = hn::Vec<PackedByteTag>;
using PackedWords = hn::Vec<PackedWordTag>;

/// The elements of a group.
struct FloatGroup {
  FloatVec at[4];
};

/// As FloatGroup, of integers.
struct BitsGroup {
  BitsVec at[4];
};

/// Two vectors of a group.
struct BitsPair {
  BitsVec first;
  BitsVec second;
};

/// Both halves of two vectors' 32-bit numbers, in memory order.
struct Halves {
  PackedWords low;
  PackedWords high;
};

/// Two vectors of 16-bit numbers: those of a group.
struct WordsPair {
  PackedWords first;
  PackedWords second;
};

/// The low bytes of a group: 4 of each vector in each 128-bit lane.
HWY_INLINE PackedBytes narrow_to_bytes(const BitsGroup& group) {
  const PackedByteTag d8;
  const auto part = [&](BitsVec v, size_t position) {
    alignas(16) uint8_t from[16];
    for (size_t i = 0; i < 16; ++i) {
      from[i] = i / 4 == position ? static_cast<uint8_t>(i % 4 * 4) : uint8_t{0x80};
    }
    return hn::TableLookupBytesOr0(hn::BitCast(d8, v), hn::LoadDup128(d8, from));
  };
  const auto& [a, b, c, d] = group.at;
  return hn::Or(hn::Or3(part(a, 0), part(b, 1), part(c, 2)), part(d, 3));
}

/// Pairs of the 16-bit numbers of two vectors as 32-bit numbers, `high` above `low`: two vectors
/// of a group, from halves in memory order.
HWY_INLINE BitsVec widen_first(PackedWords low, PackedWords high) {
  return hn::BitCast(BitsTag(), hn::InterleaveLower(PackedWordTag(), low, high));
}
HWY_INLINE BitsVec widen_second(PackedWords low, PackedWords high) {
  return hn::BitCast(BitsTag(), hn::InterleaveUpper(PackedWordTag(), low, high));
}

/// Codes of one byte in memory order as 16-bit numbers: c^2 and c |c| of a group's.
struct SquaresOfBytes {
  static HWY_INLINE WordsPair squares(const uint8_t* codes) {
    const PackedWordTag d16;
    const hn::Rebind<uint8_t, PackedWordTag> d8;
    const auto square = [&](const uint8_t* from) {
      const auto c = hn::PromoteTo(d16, hn::LoadU(d8, from));
      return hn::Mul(c, c);
    };
    return {square(codes), square(codes + 2 * kLanes)};
  }
  static HWY_INLINE WordsPair signed_squares(const uint8_t* codes) {
    const PackedSignedWordTag d16;
    const hn::Rebind<int8_t, PackedSignedWordTag> d8;
    const auto square = [&](const uint8_t* from) {
      const auto c = hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const int8_t*>(from)));
      return hn::BitCast(PackedWordTag(), hn::Mul(c, hn::Abs(c)));
    };
    return {square(codes), square(codes + 2 * kLanes)};
  }
};

struct PackOrder : SquaresOfBytes {
  /// Two vectors from their halves.
  static HWY_INLINE BitsPair join(PackedWords low, PackedWords high) {
    return {widen_first(low, high), widen_second(low, high)};
  }
  static HWY_INLINE BitsPair widen_low(PackedWords low) {
    return join(low, hn::Zero(PackedWordTag()));
  }
  static HWY_INLINE BitsPair widen_high(PackedWords high) {
    return join(hn::Zero(PackedWordTag()), high);
  }

  /// The inverse of join().
  static HWY_INLINE Halves cut(BitsVec first, BitsVec second) {
    const PackedByteTag d8;
    const PackedWordTag d16;
    const PackedPairTag d64;
    alignas(16) static constexpr uint8_t kHalves[16] = {0, 1, 4, 5, 8,  9,  12, 13,
                                                        2, 3, 6, 7, 10, 11, 14, 15};
    const auto halves = hn::LoadDup128(d8, kHalves);
    const auto a = hn::BitCast(d64, hn::TableLookupBytes(hn::BitCast(d8, first), halves));
    const auto b = hn::BitCast(d64, hn::TableLookupBytes(hn::BitCast(d8, second), halves));
    return {hn::BitCast(d16, hn::InterleaveLower(d64, a, b)),
            hn::BitCast(d16, hn::InterleaveUpper(d64, a, b))};
  }
  static HWY_INLINE PackedWords cut_high(BitsVec first, BitsVec second) {
    return cut(first, second).high;
  }

  /// The lowest bytes of all elements: part i of 8 bytes in memory is part from[i].
  static HWY_INLINE void store_bytes(const BitsGroup& codes, uint8_t* to) {
    constexpr size_t kParts = kGroup / 8;
    struct Order {
      alignas(64) uint64_t from[kParts];
      constexpr Order() : from{} {
        for (size_t i = 0; i < kParts; ++i) from[i] = i % (kParts / 2) * 2 + i / (kParts / 2);
      }
    };
    static constexpr Order kOrder;
    PackedBytes bytes = narrow_to_bytes(codes);
    if constexpr (kParts > 2) {
      const PackedPairTag d;
      bytes = hn::BitCast(
          PackedByteTag(),
          hn::TableLookupLanes(hn::BitCast(d, bytes), hn::SetTableIndices(d, kOrder.from)));
    }
    hn::StoreU(bytes, PackedByteTag(), to);
  }
};

/// Codes are loaded into the upper bytes of 16-bit numbers, of which MulHigh leaves the square.
struct MemoryOrder {
  static HWY_INLINE FloatGroup load_f32(const float* numbers) {
    const FloatTag d;
    return {{hn::LoadU(d, numbers), hn::LoadU(d, numbers + kLanes),
             hn::LoadU(d, numbers + 2 * kLanes), hn::LoadU(d, numbers + 3 * kLanes)}};
  }
  static HWY_INLINE void store_f32(const FloatGroup& group, float* numbers) {
    for (size_t k = 0; k < 4; ++k) hn::StoreU(group.at[k], FloatTag(), numbers + k * kLanes);
  }

  static HWY_INLINE WordsPair squares(const uint8_t* codes) {
    const auto [a, b] = load_high_bytes(codes);
    return {hn::MulHigh(a, a), hn::MulHigh(b, b)};
  }
  static HWY_INLINE WordsPair signed_squares(const uint8_t* codes) {
    const PackedSignedWordTag d16;
    const auto [a, b] = load_high_bytes(codes);
    const auto square = [&](PackedWords word) {
      const auto c = hn::BitCast(d16, word);
      return hn::BitCast(PackedWordTag(), hn::MulHigh(c, hn::Abs(c)));
    };
    return {square(a), square(b)};
  }

  static HWY_INLINE void store_bytes(const BitsGroup& codes, uint8_t* to) {
    hn::StoreU(move_parts(narrow_to_bytes(codes), kFromVectors.from), PackedByteTag(), to);
  }

  /// Two vectors from what squares() returned, and the same with zeros below.
  static HWY_INLINE BitsPair join(PackedWords low, PackedWords high) {
    return PackOrder::join(low, high);
  }
  static HWY_INLINE BitsPair widen_high(PackedWords high) { return PackOrder::widen_high(high); }

 private:
  /// Parts of 4 bytes. Part p of memory belongs to vector p / kBlocks; narrow_to_bytes() leaves it
  /// in block p % kBlocks.
  static constexpr size_t kBlocks = kLanes / 4;
  struct Parts {
    alignas(64) uint32_t from[kLanes];
  };
  static constexpr Parts from_vectors() {
    Parts parts = {};
    for (uint32_t p = 0; p < kLanes; ++p) parts.from[p] = p % kBlocks * 4 + p / kBlocks;
    return parts;
  }
  static constexpr Parts from_memory() {
    Parts parts = {};
    for (uint32_t p = 0; p < kLanes; ++p) parts.from[p] = p % 4 * kBlocks + p / 4;
    return parts;
  }
  static const Parts kFromVectors;
  static const Parts kFromMemory;

  static HWY_INLINE PackedBytes move_parts(PackedBytes bytes, const uint32_t* from) {
    if constexpr (kBlocks == 1) return bytes;
    const BitsTag du;
    return hn::BitCast(PackedByteTag(),
                       hn::TableLookupLanes(hn::BitCast(du, bytes), hn::SetTableIndices(du, from)));
  }
  static HWY_INLINE WordsPair load_high_bytes(const uint8_t* codes) {
    const PackedByteTag d8;
    const PackedWordTag d16;
    const auto bytes = move_parts(hn::LoadU(d8, codes), kFromMemory.from);
    const auto none = hn::Zero(d8);
    return {hn::BitCast(d16, hn::InterleaveLower(d8, none, bytes)),
            hn::BitCast(d16, hn::InterleaveUpper(d8, none, bytes))};
  }
};
inline constexpr MemoryOrder::Parts MemoryOrder::kFromVectors = MemoryOrder::from_vectors();
inline constexpr MemoryOrder::Parts MemoryOrder::kFromMemory = MemoryOrder::from_memory();

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
