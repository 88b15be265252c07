// The SIMD version of random.h, one per target: 16 random bits for each element of a tile.
#include "hwy/highway.h"
#include "outboard/types.h"
#include "quant/codec.h"
#include "quant/random.h"

#if defined(OUTBOARD_QUANT_RANDOM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_RANDOM_INL_H_
#undef OUTBOARD_QUANT_RANDOM_INL_H_
#else
#define OUTBOARD_QUANT_RANDOM_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR
constexpr size_t kPhiloxVectors = 1;  // that one call of store_philox fills
using PhiloxTag = hn::CappedTag<uint64_t, 1>;

HWY_INLINE void store_philox(uint64_t index, const RandomContext& random, uint64_t* out) {
  const PhiloxBlock block = random_block(random.key, random.step, random.stream, index << 3);
  out[0] = block.word[0] | static_cast<uint64_t>(block.word[1]) << 32;
  out[1] = block.word[2] | static_cast<uint64_t>(block.word[3]) << 32;
}
#else
/// One Philox call per 64-bit lane. Words sit in the low halves of their lanes; what is above them
/// is ignored.
using PhiloxTag = hn::CappedTag<uint64_t, 32>;
constexpr size_t kPhiloxVectors = 2;
using PhiloxVec = hn::Vec<PhiloxTag>;

/// The lane-wise 64-bit product of the low halves with `multiplier`.
HWY_INLINE PhiloxVec wide_product(PhiloxVec word, uint32_t multiplier) {
  const hn::Repartition<uint32_t, PhiloxTag> du32;
  return hn::MulEven(hn::BitCast(du32, word), hn::Set(du32, multiplier));
}

HWY_INLINE void philox_round(PhiloxVec key_low, PhiloxVec key_high, PhiloxVec& word0,
                             PhiloxVec& word1, PhiloxVec& word2, PhiloxVec& word3) {
  const PhiloxVec product0 = wide_product(word0, 0xD2511F53u);
  const PhiloxVec product1 = wide_product(word2, 0xCD9E8D57u);
  word0 = hn::Xor3(hn::ShiftRight<32>(product1), word1, key_low);
  word1 = product1;
  word2 = hn::Xor3(hn::ShiftRight<32>(product0), word3, key_high);
  word3 = product0;
}

/// Philox blocks `index`, `index` + 1, ... (one per lane of two vectors), stored as consecutive
/// 16-byte outputs. Two vectors at a time hide half of the multiplications' latency.
HWY_INLINE void store_philox(uint64_t index, const RandomContext& random, uint64_t* out) {
  const PhiloxTag d;
  const size_t lanes = hn::Lanes(d);
  PhiloxVec a0 = hn::Add(hn::Set(d, index), hn::Iota(d, 0));
  PhiloxVec b0 = hn::Add(a0, hn::Set(d, lanes));
  PhiloxVec a1 = hn::ShiftRight<32>(a0);
  PhiloxVec b1 = hn::ShiftRight<32>(b0);
  PhiloxVec a2 = hn::Set(d, random.step);
  PhiloxVec b2 = a2;
  PhiloxVec a3 = hn::Set(d, random.stream);
  PhiloxVec b3 = a3;
  RandomKey key = random.key;
  for (int round = 0; round < 10; ++round) {
    const PhiloxVec key_low = hn::Set(d, key.low);
    const PhiloxVec key_high = hn::Set(d, key.high);
    philox_round(key_low, key_high, a0, a1, a2, a3);
    philox_round(key_low, key_high, b0, b1, b2, b3);
    key = {key.low + 0x9E3779B9u, key.high + 0xBB67AE85u};
  }
  const PhiloxVec low_half = hn::Set(d, 0xFFFFFFFFull);
  hn::StoreInterleaved2(hn::Or(hn::And(a0, low_half), hn::ShiftLeft<32>(a1)),
                        hn::Or(hn::And(a2, low_half), hn::ShiftLeft<32>(a3)), d, out);
  hn::StoreInterleaved2(hn::Or(hn::And(b0, low_half), hn::ShiftLeft<32>(b1)),
                        hn::Or(hn::And(b2, low_half), hn::ShiftLeft<32>(b3)), d, out + 2 * lanes);
}
#endif  // HWY_TARGET == HWY_SCALAR

/// 16 random bits for each of kTileElements elements.
class RandomTile {
 public:
  /// Draws for elements [first_element, first_element + kTileElements) of the parameter.
  HWY_INLINE RandomTile(const RandomContext& random, uint64_t first_element)
      : skip_(static_cast<size_t>(first_element & 7)) {
    const size_t blocks = (skip_ + kTileElements + 7) / 8;
    const size_t step = kPhiloxVectors * hn::Lanes(PhiloxTag());
    for (size_t block = 0; block < blocks; block += step) {
      store_philox((first_element >> 3) + block, random, words_ + 2 * block);
    }
  }
  /// The halfwords in element order (little-endian machines).
  [[nodiscard]] HWY_INLINE const uint16_t* halfwords() const {
    return reinterpret_cast<const uint16_t*>(words_) + skip_;
  }

 private:
  static constexpr size_t kMostBlocks = kTileElements / 8 + 1 + 63;
  size_t skip_;
  HWY_ALIGN uint64_t words_[2 * kMostBlocks];
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
