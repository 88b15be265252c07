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

inline constexpr size_t kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;

#if HWY_TARGET == HWY_SCALAR
/// The keys of a parameter and a step.
struct PhiloxSchedule {
  RandomContext random;
  HWY_INLINE explicit PhiloxSchedule(const RandomContext& context) : random(context) {}
};

HWY_INLINE size_t philox_lanes() { return 1; }

HWY_INLINE void store_philox(uint64_t index, const PhiloxSchedule& schedule, uint64_t* out) {
  const RandomContext& random = schedule.random;
  const PhiloxBlock block = random_block(random.key, random.step, random.stream, index << 3);
  out[0] = block.word[0] | static_cast<uint64_t>(block.word[1]) << 32;
  out[1] = block.word[2] | static_cast<uint64_t>(block.word[3]) << 32;
}
#else
/// One Philox call per 64-bit lane. Words sit in the low halves of their lanes; what is above them
/// is ignored.
using PhiloxTag = hn::CappedTag<uint64_t, 32>;
using PhiloxVec = hn::Vec<PhiloxTag>;

HWY_INLINE size_t philox_lanes() { return hn::Lanes(PhiloxTag()); }

/// The keys of all rounds, in memory, because a load broadcasts them for nothing; of the first
/// round, whatever does not depend on the element.
struct PhiloxSchedule {
  uint64_t low[kPhiloxRounds];
  uint64_t high[kPhiloxRounds];
  uint64_t second;  ///< the second word after the first round

  HWY_INLINE explicit PhiloxSchedule(const RandomContext& random) {
    RandomKey key = random.key;
    for (size_t round = 0; round < kPhiloxRounds; ++round) {
      low[round] = key.low;
      high[round] = key.high;
      key = {key.low + 0x9E3779B9u, key.high + 0xBB67AE85u};
    }
    const uint64_t product = uint64_t{kPhiloxMultiplier1} * random.step;
    low[0] ^= product >> 32;
    high[0] ^= random.stream;
    second = product & 0xFFFFFFFFu;
  }
};

/// The lane-wise 64-bit product of the low halves with `multiplier`.
HWY_INLINE PhiloxVec wide_product(PhiloxVec word, uint32_t multiplier) {
  const hn::Repartition<uint32_t, PhiloxTag> du32;
  return hn::MulEven(hn::BitCast(du32, word), hn::Set(du32, multiplier));
}

/// The low half of `word` below the low half of `next`.
HWY_INLINE PhiloxVec join_words(PhiloxVec word, PhiloxVec next) {
  const hn::Repartition<uint32_t, PhiloxTag> du32;
  return hn::BitCast(PhiloxTag(), hn::OddEven(hn::BitCast(du32, hn::ShiftLeft<32>(next)),
                                              hn::BitCast(du32, word)));
}

/// Philox blocks `index`, `index` + 1, ... under way, one per lane. The lanes compute them in the
/// order in which interleaving brings them to memory. Each round waits for its multiplications, so
/// callers put other work between some rounds and the next.
class PhiloxBlocks {
 public:
  HWY_INLINE PhiloxBlocks(uint64_t index, const PhiloxSchedule& schedule) {
    const PhiloxTag d;
    const PhiloxVec half = hn::OddEven(hn::Set(d, hn::Lanes(d) / 2), hn::Zero(d));
    const PhiloxVec order = hn::Add(hn::ShiftRight<1>(hn::Iota(d, 0)), half);
    const PhiloxVec counter = hn::Add(hn::Set(d, index), order);
    const PhiloxVec product = wide_product(counter, kPhiloxMultiplier0);
    word0_ = hn::Xor(hn::ShiftRight<32>(counter), hn::Set(d, schedule.low[0]));
    word1_ = hn::Set(d, schedule.second);
    word2_ = hn::Xor(hn::ShiftRight<32>(product), hn::Set(d, schedule.high[0]));
    word3_ = product;
  }

  /// Rounds kFirst to kLast - 1; round 0 is done.
  template <size_t kFirst, size_t kLast>
  HWY_INLINE void run_rounds(const PhiloxSchedule& schedule) {
    const PhiloxTag d;
    for (size_t round = kFirst; round < kLast; ++round) {
      const PhiloxVec product0 = wide_product(word0_, kPhiloxMultiplier0);
      const PhiloxVec product1 = wide_product(word2_, kPhiloxMultiplier1);
      word0_ = hn::Xor3(hn::ShiftRight<32>(product1), word1_, hn::Set(d, schedule.low[round]));
      word1_ = product1;
      word2_ = hn::Xor3(hn::ShiftRight<32>(product0), word3_, hn::Set(d, schedule.high[round]));
      word3_ = product0;
    }
  }

  /// Stores 16 bytes per block, after all kPhiloxRounds.
  HWY_INLINE void store(uint64_t* out) const {
    const PhiloxTag d;
    const PhiloxVec first = join_words(word0_, word1_);
    const PhiloxVec second = join_words(word2_, word3_);
    hn::StoreU(hn::InterleaveLower(d, first, second), d, out);
    hn::StoreU(hn::InterleaveUpper(d, first, second), d, out + hn::Lanes(d));
  }

 private:
  PhiloxVec word0_;
  PhiloxVec word1_;
  PhiloxVec word2_;
  PhiloxVec word3_;
};

HWY_INLINE void store_philox(uint64_t index, const PhiloxSchedule& schedule, uint64_t* out) {
  PhiloxBlocks blocks(index, schedule);
  blocks.run_rounds<1, kPhiloxRounds>(schedule);
  blocks.store(out);
}
#endif  // HWY_TARGET == HWY_SCALAR

/// 16 random bits for each of kTileElements elements.
class RandomTile {
 public:
  /// Draws for elements [first_element, first_element + kTileElements) of the parameter.
  HWY_INLINE RandomTile(const RandomContext& random, uint64_t first_element)
      : skip_(static_cast<size_t>(first_element & 7)) {
    const size_t blocks = (skip_ + kTileElements + 7) / 8;
    const PhiloxSchedule schedule(random);
    for (size_t block = 0; block < blocks; block += philox_lanes()) {
      store_philox((first_element >> 3) + block, schedule, words_ + 2 * block);
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
