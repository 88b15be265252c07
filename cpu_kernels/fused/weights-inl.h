// How the fused kernels load gradients and load, round and store weights: one class per master
// format, with these members, where `Order` is the order of elements in a group:
//
//   using Draws = ...;                                   // TileDraws or NoDraws
//   Weights(const ParameterUpdate&, size_t first);       // from element `first` on
//   FloatGroup gradient(size_t i) const;                 // of the group at i
//   FloatGroup load(size_t i) const;
//   void store(const FloatGroup&, const Draws&, size_t i);
//   void finish();                                       // after the last group of a tile
//
// The formulas are those of quant/rounding.h. What most updates never meet takes a path of its own.
#include "cpu_kernels/exact-inl.h"
#include "cpu_kernels/fused/tile_draws-inl.h"
#include "cpu_kernels/step.h"
#include "hwy/highway.h"
#include "quant/packed_codes-inl.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_CPU_KERNELS_FUSED_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_FUSED_WEIGHTS_INL_H_
#undef OUTBOARD_CPU_KERNELS_FUSED_WEIGHTS_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_FUSED_WEIGHTS_INL_H_
#endif

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {
using q::BitsGroup;
using q::BitsTag;
using q::BitsVec;
using q::FloatGroup;
using q::PackedWords;
using q::PackedWordTag;

/// The type of both is fp32, and the weight is its own master.
template <class Order>
class F32Weights {
 public:
  using Draws = NoDraws;
  HWY_INLINE F32Weights(const ParameterUpdate& update, size_t first)
      : gradient_(static_cast<const float*>(update.gradient) + first),
        weight_(static_cast<float*>(update.weight) + first) {}
  HWY_INLINE FloatGroup gradient(size_t i) const { return Order::load_f32(gradient_ + i); }
  HWY_INLINE FloatGroup load(size_t i) const { return Order::load_f32(weight_ + i); }
  HWY_INLINE void store(const FloatGroup& group, const Draws&, size_t i) const {
    Order::store_f32(group, weight_ + i);
  }
  HWY_INLINE void finish() const {}

 private:
  const float* gradient_;
  float* weight_;
};

/// What bf16 weights share: vector j of a group's 16-bit numbers holds two vectors of elements.
template <class Order>
class Bf16Weights {
 public:
  HWY_INLINE Bf16Weights(const ParameterUpdate& update, size_t first)
      : gradient_(static_cast<const uint16_t*>(update.gradient) + first),
        weight_(static_cast<uint16_t*>(update.weight) + first) {}
  HWY_INLINE FloatGroup gradient(size_t i) const { return widen(gradient_ + i); }

 protected:
  static HWY_INLINE FloatGroup widen(const uint16_t* numbers) {
    return pairs([&](size_t j) { return Order::widen_high(load_words(numbers, j)); });
  }
  static HWY_INLINE PackedWords load_words(const uint16_t* numbers, size_t j) {
    return hn::LoadU(PackedWordTag(), numbers + 2 * j * kLanes);
  }
  static HWY_INLINE void store_words(PackedWords words, size_t j, uint16_t* numbers) {
    hn::StoreU(words, PackedWordTag(), numbers + 2 * j * kLanes);
  }
  /// A group of two_vectors(0) and two_vectors(1).
  template <class TwoVectors>
  static HWY_INLINE FloatGroup pairs(const TwoVectors& two_vectors) {
    const FloatTag df;
    const auto [a, b] = two_vectors(0);
    const auto [c, d] = two_vectors(1);
    return {{hn::BitCast(df, a), hn::BitCast(df, b), hn::BitCast(df, c), hn::BitCast(df, d)}};
  }
  /// As quant::join_f32: the upper half is one less where the lower one is negative.
  static HWY_INLINE q::BitsPair join(PackedWords low, PackedWords high) {
    return Order::join(low, hn::Sub(high, hn::ShiftRight<15>(low)));
  }
  /// The weight of split halves.
  static HWY_INLINE PackedWords rounded(const q::Halves& halves) {
    return hn::Add(halves.high, hn::ShiftRight<15>(halves.low));
  }
  /// Whether any of two vectors of upper halves is that of an infinity or NaN.
  static HWY_INLINE bool has_special(PackedWords a, PackedWords b) {
    const PackedWordTag d;
    const auto doubled = hn::Max(hn::Add(a, a), hn::Add(b, b));  // without signs
    return !hn::AllFalse(d, hn::Gt(doubled, hn::Set(d, 2 * 0x7F80 - 1)));
  }
  static HWY_INLINE BitsVec bits(FloatVec value) { return hn::BitCast(BitsTag(), value); }

  const uint16_t* gradient_;
  uint16_t* weight_;
};

/// MasterFormat::kSplit. Weights are cut as if none was NaN; the sum of products finds a tile with
/// one, and since halves lose nothing, its NaNs can get their bits afterwards.
template <class Order>
class SplitWeights : public Bf16Weights<Order> {
  using Base = Bf16Weights<Order>;

 public:
  using Draws = NoDraws;
  HWY_INLINE SplitWeights(const ParameterUpdate& update, size_t first)
      : Base(update, first),
        low_(static_cast<uint16_t*>(update.master) + first),
        sum_(hn::Zero(FloatTag())) {}
  HWY_INLINE FloatGroup load(size_t i) const {
    return Base::pairs([&](size_t j) {
      return Base::join(Base::load_words(low_ + i, j), Base::load_words(this->weight_ + i, j));
    });
  }
  HWY_INLINE void store(const FloatGroup& group, const Draws&, size_t i) {
    for (size_t j = 0; j < 2; ++j) {
      const FloatVec first = group.at[2 * j];
      const FloatVec second = group.at[2 * j + 1];
      sum_ = hn::MulAdd(first, second, sum_);
      const q::Halves halves = Order::cut(Base::bits(first), Base::bits(second));
      Base::store_words(halves.low, j, low_ + i);
      Base::store_words(Base::rounded(halves), j, this->weight_ + i);
    }
  }
  HWY_INLINE void finish() const {
    if (!hn::AllTrue(FloatTag(), hn::Eq(sum_, sum_))) canonicalise();
  }

 private:
  /// Gives NaN weights the bits that quant::split_f32 gives them.
  HWY_INLINE void canonicalise() const {
    for (size_t i = 0; i < kTileElements; i += kLanes) {
      const auto* lower = reinterpret_cast<const int16_t*>(low_ + i);
      const BitsVec b = q::splittable_bits(q::load_joined(this->weight_ + i, lower));
      q::store_halfwords(q::split_high(b), this->weight_ + i);
      q::store_halfwords(b, low_ + i);
    }
  }

  uint16_t* low_;
  FloatVec sum_;
};

/// MasterFormat::kStochastic. Adding the draw to the bits rounds the magnitude, unless that is
/// not finite, before or after.
template <class Order>
class StochasticWeights : public Bf16Weights<Order> {
  using Base = Bf16Weights<Order>;

 public:
  using Draws = TileDraws;
  HWY_INLINE StochasticWeights(const ParameterUpdate& update, size_t first) : Base(update, first) {}
  HWY_INLINE FloatGroup load(size_t i) const { return Base::widen(this->weight_ + i); }
  HWY_INLINE void store(const FloatGroup& group, const Draws& draws, size_t i) const {
    const BitsGroup draw = draws.at<Order>(i);
    const auto cut = [&](const auto& round) {
      return q::WordsPair{Order::cut_high(round(0), round(1)), Order::cut_high(round(2), round(3))};
    };
    auto [a, b] = cut([&](size_t k) { return hn::Add(Base::bits(group.at[k]), draw.at[k]); });
    if (HWY_UNLIKELY(Base::has_special(a, b))) {
      const auto exact = cut(
          [&](size_t k) { return hn::ShiftLeft<16>(q::bf16_stochastic(group.at[k], draw.at[k])); });
      a = exact.first;
      b = exact.second;
    }
    Base::store_words(a, 0, this->weight_ + i);
    Base::store_words(b, 1, this->weight_ + i);
  }
  HWY_INLINE void finish() const {}
};

/// MasterFormat::kSplit8, in the same way; of numbers that must not grow, bits go that are cut off.
template <class Order>
class Split8Weights : public Bf16Weights<Order> {
  using Base = Bf16Weights<Order>;

 public:
  using Draws = TileDraws;
  HWY_INLINE Split8Weights(const ParameterUpdate& update, size_t first)
      : Base(update, first), low_(static_cast<uint8_t*>(update.master) + first) {}
  HWY_INLINE FloatGroup load(size_t i) const {
    const ByteTag d8;
    return Base::pairs([&](size_t j) {
      const auto low = hn::PromoteTo(PackedWordTag(), hn::LoadU(d8, low_ + i + 2 * j * kLanes));
      return Base::join(hn::ShiftLeft<8>(low), Base::load_words(this->weight_ + i, j));
    });
  }
  HWY_INLINE void store(const FloatGroup& group, const Draws& draws, size_t i) const {
    const BitsGroup draw = draws.at<Order>(i);
    const auto cut = [&](const auto& round) {
      return Cut{Order::cut(round(0), round(1)), Order::cut(round(2), round(3))};
    };
    Cut halves = cut([&](size_t k) {
      const BitsVec last_byte = hn::And(draw.at[k], hn::Set(BitsTag(), 0xFF));
      return hn::Add(Base::bits(group.at[k]), last_byte);
    });
    if (HWY_UNLIKELY(Base::has_special(halves.a.high, halves.b.high))) {
      halves = cut([&](size_t k) { return q::split8_bits(group.at[k], draw.at[k]); });
    }
    store_pair(halves.a, 0, i);
    store_pair(halves.b, 1, i);
  }
  HWY_INLINE void finish() const {}

 private:
  using ByteTag = hn::Rebind<uint8_t, PackedWordTag>;
  struct Cut {
    q::Halves a;
    q::Halves b;
  };
  HWY_INLINE void store_pair(const q::Halves& halves, size_t j, size_t i) const {
    Base::store_words(Base::rounded(halves), j, this->weight_ + i);
    const ByteTag d8;
    hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<8>(halves.low)), d8, low_ + i + 2 * j * kLanes);
  }

  uint8_t* low_;
};

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
