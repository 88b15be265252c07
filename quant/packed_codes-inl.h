// Four vectors of elements at a time, in an order that widens and narrows without crossing 128-bit
// lanes: pack order. Of a group of 4 x lanes elements, two vectors of 16-bit numbers hold the
// halves in memory order; the lower and the upper half of each of their 128-bit lanes, widened,
// are the four vectors of 32-bit numbers. Kernels that have no use for memory order between load
// and store pay one or two operations per vector for widening and narrowing instead of three to
// six. One version per target, for little-endian targets whose vectors have a known length.
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

/// Stores a group's codes of one byte: part i of 8 bytes in memory is part from[i] of `codes`.
HWY_INLINE void store_bytes(PackedBytes codes, uint8_t* to) {
  constexpr size_t kParts = kGroup / 8;
  struct Order {
    alignas(64) uint64_t from[kParts];
    constexpr Order() : from{} {
      for (size_t i = 0; i < kParts; ++i) from[i] = i % (kParts / 2) * 2 + i / (kParts / 2);
    }
  };
  static constexpr Order kOrder;
  if constexpr (kParts > 2) {
    const PackedPairTag d;
    codes = hn::BitCast(PackedByteTag(), hn::TableLookupLanes(hn::BitCast(d, codes),
                                                              hn::SetTableIndices(d, kOrder.from)));
  }
  hn::StoreU(codes, PackedByteTag(), to);
}

/// The low bytes of four vectors of 32-bit numbers.
HWY_INLINE PackedBytes narrow_to_bytes(BitsVec a, BitsVec b, BitsVec c, BitsVec d) {
  const PackedByteTag d8;
  const auto part = [&](BitsVec v, size_t position) {
    alignas(16) uint8_t from[16];
    for (size_t i = 0; i < 16; ++i) {
      from[i] = i / 4 == position ? static_cast<uint8_t>(i % 4 * 4) : uint8_t{0x80};
    }
    return hn::TableLookupBytesOr0(hn::BitCast(d8, v), hn::LoadDup128(d8, from));
  };
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

/// Stores two vectors of halves of fp32 numbers: where the lower one is negative, the upper one
/// grows by one.
HWY_INLINE void store_halves(PackedWords lower, PackedWords upper, uint16_t* high, uint16_t* low) {
  const PackedWordTag d16;
  hn::StoreU(lower, d16, low);
  hn::StoreU(hn::Add(upper, hn::ShiftRight<15>(lower)), d16, high);
}

/// 16-bit numbers in memory from and to a group in pack order. PairOrder has the same functions.
struct PackOrder {
  /// A group of bf16 numbers.
  static HWY_INLINE FloatGroup load_bf16(const uint16_t* codes) {
    const PackedWordTag d16;
    const FloatTag df;
    const auto zero = hn::Zero(d16);
    const auto a = hn::LoadU(d16, codes);
    const auto b = hn::LoadU(d16, codes + 2 * kLanes);
    return {{hn::BitCast(df, widen_first(zero, a)), hn::BitCast(df, widen_second(zero, a)),
             hn::BitCast(df, widen_first(zero, b)), hn::BitCast(df, widen_second(zero, b))}};
  }

  /// As quant::join_f32: the upper half is one less where the lower one is negative.
  static HWY_INLINE FloatGroup load_joined(const uint16_t* high, const uint16_t* low) {
    const PackedWordTag d16;
    FloatGroup group;
    for (size_t k = 0; k < 2; ++k) {
      const auto lower = hn::LoadU(d16, low + k * 2 * kLanes);
      const auto upper = hn::Sub(hn::LoadU(d16, high + k * 2 * kLanes), hn::ShiftRight<15>(lower));
      group.at[2 * k] = hn::BitCast(FloatTag(), widen_first(lower, upper));
      group.at[2 * k + 1] = hn::BitCast(FloatTag(), widen_second(lower, upper));
    }
    return group;
  }

  /// As quant::split_f32, for numbers none of which is NaN: two vectors of a group.
  static HWY_INLINE void store_split(FloatVec first, FloatVec second, uint16_t* high,
                                     uint16_t* low) {
    const PackedByteTag d8;
    const PackedWordTag d16;
    const PackedPairTag d64;
    alignas(16) static constexpr uint8_t kHalves[16] = {0, 1, 4, 5, 8,  9,  12, 13,
                                                        2, 3, 6, 7, 10, 11, 14, 15};
    const auto halves = hn::LoadDup128(d8, kHalves);
    const auto a = hn::BitCast(d64, hn::TableLookupBytes(hn::BitCast(d8, first), halves));
    const auto b = hn::BitCast(d64, hn::TableLookupBytes(hn::BitCast(d8, second), halves));
    const auto lower = hn::BitCast(d16, hn::InterleaveLower(d64, a, b));
    const auto upper = hn::BitCast(d16, hn::InterleaveUpper(d64, a, b));
    store_halves(lower, upper, high, low);
  }
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
