// The loops that every block format shares on the CPU, one version per target: the largest
// magnitude of a block, its scale, codes in and out of memory. A format adds two small structs over
// vectors, the counterparts of its scalar Encoder and Decoder:
//
//   struct Sym8Encoder { HWY_INLINE explicit Sym8Encoder(float scale);           // scale > 0
//                        HWY_INLINE BitsVec operator()(FloatVec value, BitsVec random16) const; };
//   struct Sym8Decoder { HWY_INLINE explicit Sym8Decoder(float scale);
//                        HWY_INLINE FloatVec operator()(BitsVec code) const; };
//
// Codes are the low bits of their lanes.
#include <algorithm>

#include "hwy/highway.h"
#include "quant/block_format.h"
#include "quant/codec.h"
#include "quant/random-inl.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_BLOCK_CODEC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_BLOCK_CODEC_INL_H_
#undef OUTBOARD_QUANT_BLOCK_CODEC_INL_H_
#else
#define OUTBOARD_QUANT_BLOCK_CODEC_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

using ByteTag = hn::Rebind<uint8_t, FloatTag>;

/// The longest block of any format.
inline constexpr size_t kMostBlockElements = 2048;

/// The largest magnitude of `count` elements; a NaN wins. Integer comparison of the bits.
HWY_INLINE float largest_magnitude(const float* in, size_t count) {
  const SignedTag ds;
  const auto mask = hn::Set(ds, 0x7FFFFFFF);
  const size_t lanes = hn::Lanes(ds);
  auto first = hn::Zero(ds);
  auto second = hn::Zero(ds);
  const auto* bits = reinterpret_cast<const int32_t*>(in);
  for (size_t i = 0; i < count; i += 2 * lanes) {  // two chains: a maximum waits for the last one
    first = hn::Max(first, hn::And(hn::LoadU(ds, bits + i), mask));
    if (i + lanes < count) {
      second = hn::Max(second, hn::And(hn::LoadU(ds, bits + i + lanes), mask));
    }
  }
  const auto all = hn::MaxOfLanes(ds, hn::Max(first, second));
  return exact::from_bits(static_cast<uint32_t>(hn::GetLane(all)));
}

/// Two codes of 4 bits side by side in one 16-bit lane, the earlier in the lower byte
/// (little-endian machines).
using PairTag = hn::CappedTag<uint16_t, 32>;
using PackedTag = hn::Rebind<uint8_t, PairTag>;

/// `count` codes of 4 bits from bytes to one byte each, or back; `count` is a multiple of 64.
HWY_INLINE void unpack_nibbles(NibbleOrder order, const uint8_t* packed, size_t count,
                               uint8_t* codes) {
  const PairTag d;
  const auto mask = hn::Set(d, 0x0F0F);
  for (size_t i = 0; i < count / 2; i += hn::Lanes(d)) {
    const auto both = hn::PromoteTo(d, hn::LoadU(PackedTag(), packed + i));
    const auto spread = order == NibbleOrder::kEvenLow
                            ? hn::Or(both, hn::ShiftLeft<4>(both))
                            : hn::Or(hn::ShiftRight<4>(both), hn::ShiftLeft<8>(both));
    hn::StoreU(hn::And(spread, mask), d, reinterpret_cast<uint16_t*>(codes) + i);
  }
}

HWY_INLINE void pack_nibbles(NibbleOrder order, const uint8_t* codes, size_t count,
                             uint8_t* packed) {
  const PairTag d;
  for (size_t i = 0; i < count / 2; i += hn::Lanes(d)) {
    const auto pair = hn::LoadU(d, reinterpret_cast<const uint16_t*>(codes) + i);
    const auto both = order == NibbleOrder::kEvenLow
                          ? hn::Or(pair, hn::ShiftRight<4>(pair))
                          : hn::Or(hn::ShiftLeft<4>(pair), hn::ShiftRight<8>(pair));
    hn::StoreU(hn::TruncateTo(PackedTag(), both), PackedTag(), packed + i);
  }
}

/// Decodes a run within one block.
template <class Decoder>
HWY_INLINE void decode_run(const uint8_t* codes, size_t count, float scale, float* out) {
  const Decoder decoder(scale);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    const BitsVec code = hn::PromoteTo(BitsTag(), hn::LoadU(ByteTag(), codes + i));
    hn::StoreU(decoder(code), FloatTag(), out + i);
  }
}

/// Codec::decode of a block format.
template <class Definition, class Decoder>
HWY_INLINE void decode_blocks(const StateArray& array, size_t first, size_t count, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(array.codes);
  const size_t run = std::min(array.block_elements, kTileElements);
  HWY_ALIGN uint8_t unpacked[kTileElements];
  for (size_t i = 0; i < count; i += run) {
    const uint8_t* codes = bytes + (first + i) * Definition::kCodeBits / 8;
    if constexpr (Definition::kCodeBits == 4) {
      unpack_nibbles(Definition::kNibbleOrder, codes, run, unpacked);
      codes = unpacked;
    }
    decode_run<Decoder>(codes, run, array.scales[(first + i) / array.block_elements], out + i);
  }
}

/// Encodes a run within one block, whose scale is given. `random16` is read for stochastic formats
/// only.
template <class Definition, class Encoder>
HWY_INLINE void encode_run(const float* in, size_t count, float scale, const uint16_t* random16,
                           uint8_t* codes) {
  const BlockEncoder<Definition> scalar(scale);
  if (!scalar.is_live) {
    std::fill_n(codes, count, static_cast<uint8_t>(scalar(0.0f, 0)));
    return;
  }
  const Encoder encoder(scale);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    BitsVec draws = hn::Zero(BitsTag());
    if constexpr (Definition::kIsStochastic) draws = load_halfwords(random16 + i);
    const BitsVec code = encoder(hn::LoadU(FloatTag(), in + i), draws);
    hn::StoreU(hn::TruncateTo(ByteTag(), code), ByteTag(), codes + i);
  }
}

/// Encodes one tile, all of whose elements count. `random16` is null for formats that round to
/// nearest.
template <class Definition, class Encoder>
HWY_INLINE void encode_tile(const float* in, size_t first, const uint16_t* random16,
                            const StateArray& array) {
  auto* bytes = static_cast<uint8_t*>(array.codes);
  const size_t block = array.block_elements;
  const size_t run = std::min(block, kTileElements);
  HWY_ALIGN uint8_t unpacked[kTileElements];
  for (size_t i = 0; i < kTileElements; i += run) {
    float& scale = array.scales[(first + i) / block];
    if ((first + i) % block == 0) scale = Definition::scale(largest_magnitude(in + i, block));
    uint8_t* codes = bytes + (first + i) * Definition::kCodeBits / 8;
    uint8_t* target = Definition::kCodeBits == 4 ? unpacked : codes;
    const uint16_t* draws = random16 == nullptr ? nullptr : random16 + i;
    encode_run<Definition, Encoder>(in + i, run, scale, draws, target);
    if constexpr (Definition::kCodeBits == 4) {
      pack_nibbles(Definition::kNibbleOrder, unpacked, run, codes);
    }
  }
}

/// Encodes whole units, all of whose elements count.
template <class Definition, class Encoder>
HWY_INLINE void encode_units(const float* in, size_t first, size_t count,
                             const RandomContext& random, uint64_t element_offset,
                             const StateArray& array) {
  for (size_t tile = 0; tile < count; tile += kTileElements) {
    if constexpr (Definition::kIsStochastic) {
      const RandomTile draws(random, element_offset + first + tile);
      encode_tile<Definition, Encoder>(in + tile, first + tile, draws.halfwords(), array);
    } else {
      encode_tile<Definition, Encoder>(in + tile, first + tile, nullptr, array);
    }
  }
}

/// Codec::encode of a block format: what lies beyond the array's end is encoded as zero.
template <class Definition, class Encoder>
HWY_INLINE void encode_blocks(const float* in, size_t first, size_t count, size_t elements,
                              const RandomContext& random, uint64_t element_offset,
                              const StateArray& array) {
  const size_t unit = std::max(array.block_elements, kTileElements);
  const size_t existing = std::min(count, elements - std::min(elements, first));
  const size_t whole = existing / unit * unit;
  encode_units<Definition, Encoder>(in, first, whole, random, element_offset, array);
  HWY_ALIGN float padded[kMostBlockElements];
  for (size_t i = whole; i < count; i += unit) {
    const size_t kept = std::min(unit, existing - std::min(existing, i));
    std::copy_n(in + i, kept, padded);
    std::fill(padded + kept, padded + unit, 0.0f);
    encode_units<Definition, Encoder>(padded, first + i, unit, random, element_offset, array);
  }
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
