// Four vectors of elements at a time, even and odd elements apart: pair order. Of a group of 4 x
// lanes elements, a vector holds the even elements of the first half, the next one its odd
// elements, then the same of the second half. So a 32-bit lane of 16-bit numbers in memory and a
// byte with two codes of 4 bits belong to the same lane of two vectors, and no element moves
// between lanes. The counterpart of packed_codes-inl.h for formats of 4 bits.
#include "hwy/highway.h"
#include "quant/packed_codes-inl.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_PAIRED_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_PAIRED_CODES_INL_H_
#undef OUTBOARD_QUANT_PAIRED_CODES_INL_H_
#else
#define OUTBOARD_QUANT_PAIRED_CODES_INL_H_
#endif

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

/// Of each 32-bit lane the upper half of `high` and the lower half of `low`.
HWY_INLINE BitsVec join_halves(BitsVec high, BitsVec low) {
  const PackedWordTag d16;
  return hn::BitCast(BitsTag(), hn::OddEven(hn::BitCast(d16, high), hn::BitCast(d16, low)));
}

/// The lowest kBits of `low`, above them `high`.
template <int kBits>
HWY_INLINE BitsVec join_bits(BitsVec high, BitsVec low) {
  return hn::OrAnd(hn::ShiftLeft<kBits>(high), low, hn::Set(BitsTag(), (1u << kBits) - 1));
}

/// The functions of PackOrder, and fp32 numbers in memory.
struct PairOrder : SquaresOfBytes {
  static HWY_INLINE BitsPair join(PackedWords low, PackedWords high) {
    const BitsVec lower = hn::BitCast(BitsTag(), low);
    const BitsVec upper = hn::BitCast(BitsTag(), high);
    return {join_halves(hn::ShiftLeft<16>(upper), lower),
            join_halves(upper, hn::ShiftRight<16>(lower))};
  }
  static HWY_INLINE BitsPair widen_low(PackedWords low) {
    const BitsVec both = hn::BitCast(BitsTag(), low);
    return {hn::And(both, hn::Set(BitsTag(), 0xFFFF)), hn::ShiftRight<16>(both)};
  }
  static HWY_INLINE BitsPair widen_high(PackedWords high) {
    const BitsVec both = hn::BitCast(BitsTag(), high);
    return {hn::ShiftLeft<16>(both), hn::And(both, hn::Set(BitsTag(), 0xFFFF0000u))};
  }

  static HWY_INLINE Halves cut(BitsVec even, BitsVec odd) {
    return {hn::BitCast(PackedWordTag(), join_halves(hn::ShiftLeft<16>(odd), even)),
            cut_high(even, odd)};
  }
  static HWY_INLINE PackedWords cut_high(BitsVec even, BitsVec odd) {
    return hn::BitCast(PackedWordTag(), join_halves(odd, hn::ShiftRight<16>(even)));
  }

  /// The lowest bytes of all elements.
  static HWY_INLINE void store_bytes(const BitsGroup& codes, uint8_t* to) {
    auto* words = reinterpret_cast<uint16_t*>(to);
    store_halfwords(join_bits<8>(codes.at[1], codes.at[0]), words);
    store_halfwords(join_bits<8>(codes.at[3], codes.at[2]), words + kLanes);
  }

  static HWY_INLINE FloatGroup load_f32(const float* numbers) {
    FloatVec a;
    FloatVec b;
    FloatVec c;
    FloatVec d;
    hn::LoadInterleaved2(FloatTag(), numbers, a, b);
    hn::LoadInterleaved2(FloatTag(), numbers + 2 * kLanes, c, d);
    return {{a, b, c, d}};
  }
  static HWY_INLINE void store_f32(const FloatGroup& group, float* numbers) {
    hn::StoreInterleaved2(group.at[0], group.at[1], FloatTag(), numbers);
    hn::StoreInterleaved2(group.at[2], group.at[3], FloatTag(), numbers + 2 * kLanes);
  }
};

/// The levels of a group of 4-bit codes, the even element in the lower half of a byte. `codes` are
/// those of the group's first element.
template <class Levels>
HWY_INLINE FloatGroup look_up_nibbles(const uint8_t* codes, const Levels& levels) {
  const hn::Rebind<uint8_t, FloatTag> d8;
  const BitsVec first = hn::PromoteTo(BitsTag(), hn::LoadU(d8, codes));
  const BitsVec second = hn::PromoteTo(BitsTag(), hn::LoadU(d8, codes + kLanes));
  return {{levels.at_low_bits(first), levels.at_low_bits(hn::ShiftRight<4>(first)),
           levels.at_low_bits(second), levels.at_low_bits(hn::ShiftRight<4>(second))}};
}

/// The order of 32-bit parts in which byte j of lane i, after moves within 128-bit blocks, comes to
/// place j * lanes + i.
struct ByteTransposition {
  alignas(64) uint32_t from[kLanes];
  constexpr ByteTransposition() : from{} {
    for (uint32_t i = 0; i < kLanes; ++i) from[i] = i % (kLanes / 4) * 4 + i / (kLanes / 4);
  }
};

/// The lowest bytes of all lanes, then the second ones, the third and the highest.
HWY_INLINE PackedBytes transpose_bytes(BitsVec lanes) {
  static constexpr ByteTransposition kOrder;
  const PackedByteTag d8;
  alignas(16) static constexpr uint8_t kWithin[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                      2, 6, 10, 14, 3, 7, 11, 15};
  const auto within = hn::TableLookupBytes(hn::BitCast(d8, lanes), hn::LoadDup128(d8, kWithin));
  if constexpr (kLanes == 4) return within;
  const auto indices = hn::SetTableIndices(BitsTag(), kOrder.from);
  return hn::BitCast(d8, hn::TableLookupLanes(hn::BitCast(BitsTag(), within), indices));
}

/// Bytes of two 4-bit codes, the lowest bits of their lanes; the even element's is the lower half.
/// Those of the group's second half are above those of the first.
HWY_INLINE BitsVec join_nibbles(const BitsGroup& group) {
  return join_bits<8>(join_bits<4>(group.at[3], group.at[2]),
                      join_bits<4>(group.at[1], group.at[0]));
}

/// Stores a group of 4-bit codes.
HWY_INLINE void store_nibbles(const BitsGroup& group, uint8_t* to) {
  const hn::Rebind<uint8_t, FloatTag> d8;
  const BitsVec bytes = join_nibbles(group);
  hn::StoreU(hn::TruncateTo(d8, bytes), d8, to);
  hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<8>(bytes)), d8, to + kLanes);
}

/// The same for two groups at once.
HWY_INLINE void store_nibbles(const BitsGroup& a, const BitsGroup& b, uint8_t* to_a,
                              uint8_t* to_b) {
  const BitsVec both = join_halves(hn::ShiftLeft<16>(join_nibbles(b)), join_nibbles(a));
  const PackedBytes bytes = transpose_bytes(both);
  const hn::Half<PackedByteTag> d;
  hn::StoreU(hn::LowerHalf(d, bytes), d, to_a);
  hn::StoreU(hn::UpperHalf(d, bytes), d, to_b);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
