// Adam and AdamW with a split bf16 weight, a bf16 gradient and moments in blocks of 128, a tile at
// a time, one version per target. The formulas are those of adam_moments-inl.h and of the formats;
// what is here is their order. It takes half the time of the passes in cache, because four vectors
// are widened and narrowed together, the encoder takes the root that the update needs anyway,
// encoding runs while the divider is busy with the weights, and what only special numbers need is
// left out: a tile in which one appears is left to the general passes. How moments are stored is
// described by a class `Pair` of two formats:
//
//   struct Nf4Root4 {
//     using Order = q::PairOrder;                     // of elements in a group
//     static constexpr size_t kCodeBits = 4;
//     static constexpr bool kScalesAreRoots = false;  // of the second moment
//     struct Draws {                                  // a tile's random numbers
//       explicit Draws(const ParameterUpdate&);
//       struct TwoGroups {                            // groups i and i + kGroup: made in 8 parts
//         TwoGroups(Draws&, size_t first, size_t i);
//         void run_part<k>();
//       };
//     };
//     struct Units {                                  // what decoders need of a tile's scales
//       explicit Units(PerBlock scales);
//       bool is_usual() const;
//     };
//     struct Decoder {                                // of block b
//       Decoder(const Units&, size_t b);
//       FloatGroup m(const uint8_t* codes) const;     // and v
//     };
//     struct Scales {                                 // of a tile, and what encoders need of them
//       float at[4];                                  // in the order of PerBlock
//       bool set(PerBlock largest);                   // false: something is special
//     };
//     struct Encoder {                                // of block b
//       Encoder(const Scales&, size_t b);
//       struct Codes;                                 // of a group, found vector by vector
//       Codes begin(const Moments<Nf4Root4>&, size_t i) const;
//       void find_codes<k>(FloatVec m, FloatVec root, Codes&) const;
//       void store(const Codes&, uint8_t* m_codes, uint8_t* v_codes) const;
//     };
//   };
#include <algorithm>

#include "cpu_kernels/rules/adam_moments-inl.h"
#include "cpu_kernels/step.h"
#include "hwy/highway.h"
#include "outboard/rules/adam_moments.h"
#include "quant/packed_codes-inl.h"

#if defined(OUTBOARD_CPU_KERNELS_FUSED_ADAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_FUSED_ADAM_INL_H_
#undef OUTBOARD_CPU_KERNELS_FUSED_ADAM_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_FUSED_ADAM_INL_H_
#endif

/// Whether the target has fused kernels.
#undef OUTBOARD_HAS_FUSED_KERNELS
#define OUTBOARD_HAS_FUSED_KERNELS \
  (HWY_NATIVE_FMA && !HWY_HAVE_SCALABLE && HWY_TARGET != HWY_SCALAR)

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if OUTBOARD_HAS_FUSED_KERNELS
namespace q = quant::HWY_NAMESPACE;
using q::BitsTag;
using q::BitsVec;
using q::FloatGroup;
using q::kGroup;
using q::kLanes;

constexpr size_t kBlock = 128;
constexpr size_t kBlocks = kTileElements / kBlock;
static_assert(kBlocks == 2 && kBlock % (2 * kGroup) == 0);

/// One number for each moment of each block: of m in blocks 0 and 1, then of v.
using PerBlockTag = hn::Full128<float>;
using PerBlock = hn::Vec<PerBlockTag>;
constexpr size_t kOfM = 0;
constexpr size_t kOfV = kBlocks;

/// The same two numbers for both blocks.
HWY_INLINE PerBlock per_moment(float m, float v) {
  alignas(16) const float lanes[4] = {m, m, v, v};
  return hn::Load(PerBlockTag(), lanes);
}

/// The moments of a tile between decode and encode, in groups, and the blocks' scales.
template <class Pair>
struct alignas(64) Moments {
  float m[kTileElements];
  float root[kTileElements];
  typename Pair::Draws draws;
  typename Pair::Scales scales;

  explicit Moments(const ParameterUpdate& update) : draws(update) {}
};

/// A block's largest magnitudes, as bits. `v` is the largest root if the scales are roots.
struct Largest {
  BitsVec m;
  BitsVec v;
};

/// The parameter's arrays from one tile on.
template <class Pair>
struct Arrays {
  static constexpr size_t kPerByte = 8 / Pair::kCodeBits;
  const uint16_t* gradient;
  uint16_t* weight;
  uint16_t* low;
  uint8_t* m;
  uint8_t* v;
  float* m_scales;
  float* v_scales;

  Arrays(const ParameterUpdate& update, size_t first)
      : gradient(static_cast<const uint16_t*>(update.gradient) + first),
        weight(static_cast<uint16_t*>(update.weight) + first),
        low(static_cast<uint16_t*>(update.master) + first),
        m(static_cast<uint8_t*>(update.states[0].codes) + first / kPerByte),
        v(static_cast<uint8_t*>(update.states[1].codes) + first / kPerByte),
        m_scales(update.states[0].scales + first / kBlock),
        v_scales(update.states[1].scales + first / kBlock) {}

  HWY_INLINE PerBlock scales() const {
    const hn::Half<PerBlockTag> half;
    return hn::Combine(PerBlockTag(), hn::LoadU(half, v_scales), hn::LoadU(half, m_scales));
  }
  HWY_INLINE void set_scales(const float* scales) const {
    std::copy_n(scales + kOfM, kBlocks, m_scales);
    std::copy_n(scales + kOfV, kBlocks, v_scales);
  }
};

/// Calls body(k) for the vectors k of a group, a constant.
template <class Body>
HWY_INLINE void for_each_vector(const Body& body) {
  body(std::integral_constant<size_t, 0>());
  body(std::integral_constant<size_t, 1>());
  body(std::integral_constant<size_t, 2>());
  body(std::integral_constant<size_t, 3>());
}

/// Decodes the moments of the group at `i`, updates them and takes the root.
template <class Pair, bool kHasL2, size_t kGroupOfPair>
HWY_INLINE void update_moments(const rules::AdamScalars<float>& s, const Arrays<Pair>& arrays,
                               size_t i, const typename Pair::Decoder& decoder,
                               typename Pair::Draws::TwoGroups& draws, Moments<Pair>& moments,
                               Largest& largest) {
  using Order = typename Pair::Order;
  const FloatGroup gradient = Order::load_bf16(arrays.gradient + i);
  const FloatGroup old_m = decoder.m(arrays.m + i / Arrays<Pair>::kPerByte);
  const FloatGroup old_v = decoder.v(arrays.v + i / Arrays<Pair>::kPerByte);
  FloatGroup weight = gradient;
  if constexpr (kHasL2) weight = Order::load_joined(arrays.weight + i, arrays.low + i);
  for_each_vector([&](auto vector) {
    constexpr size_t k = decltype(vector)::value;
    const FloatVec g = adam_gradient<kHasL2>(s, gradient.at[k], weight.at[k]);
    const FloatVec v = ema_of_squares(old_v.at[k], g, s.beta2, s.one_minus_beta2);
    const FloatVec root = hn::Sqrt(v);
    const FloatVec m = lerp_by_less_than_half(old_m.at[k], g, s.one_minus_beta1);
    largest.m = hn::Max(largest.m, hn::BitCast(BitsTag(), hn::Abs(m)));
    largest.v = hn::Max(largest.v, hn::BitCast(BitsTag(), Pair::kScalesAreRoots ? root : v));
    hn::Store(m, FloatTag(), moments.m + i + k * kLanes);
    hn::Store(root, FloatTag(), moments.root + i + k * kLanes);
    draws.template run_part<4 * kGroupOfPair + k>();
  });
}

/// Updates and rounds the weights of the group at `i` and encodes its moments; a NaN among the
/// weights makes `sum` NaN and is stored with the bits that it happens to have.
template <class Pair>
HWY_INLINE void store_group(const rules::AdamScalars<float>& s, const Arrays<Pair>& arrays,
                            size_t i, const typename Pair::Encoder& encoder,
                            const Moments<Pair>& moments, FloatVec& sum) {
  using Order = typename Pair::Order;
  constexpr size_t kPerByte = Arrays<Pair>::kPerByte;
  FloatGroup weight = Order::load_joined(arrays.weight + i, arrays.low + i);
  auto codes = encoder.begin(moments, i);
  for (size_t k = 0; k < 4; ++k) {
    const FloatVec m = hn::Load(FloatTag(), moments.m + i + k * kLanes);
    const FloatVec root = hn::Load(FloatTag(), moments.root + i + k * kLanes);
    weight.at[k] = adam_weight<true>(s, weight.at[k], m, root);
  }
  for (size_t k = 0; k < 4; k += 2) {
    sum = hn::MulAdd(weight.at[k], weight.at[k + 1], sum);
    Order::store_split(weight.at[k], weight.at[k + 1], arrays.weight + i + k * kLanes,
                       arrays.low + i + k * kLanes);
  }
  for_each_vector([&](auto vector) {
    constexpr size_t k = decltype(vector)::value;
    const FloatVec m = hn::Load(FloatTag(), moments.m + i + k * kLanes);
    const FloatVec root = hn::Load(FloatTag(), moments.root + i + k * kLanes);
    encoder.template find_codes<k>(m, root, codes);
  });
  encoder.store(codes, arrays.m + i / kPerByte, arrays.v + i / kPerByte);
}

/// Gives a tile's NaN weights the bits that quant::split_f32 gives them; halves are lossless.
HWY_INLINE void canonicalise_weights(uint16_t* high, uint16_t* low) {
  for (size_t i = 0; i < kTileElements; i += kLanes) {
    const auto* lower = reinterpret_cast<const int16_t*>(low + i);
    const BitsVec bits = q::splittable_bits(q::load_joined(high + i, lower));
    q::store_halfwords(q::split_high(bits), high + i);
    q::store_halfwords(bits, low + i);
  }
}

/// The largest lanes of all blocks at once.
HWY_INLINE PerBlock largest_lanes(const Largest (&blocks)[kBlocks]) {
  const BitsTag du;
  const q::PackedPairTag d64;
  const hn::Full128<uint32_t> d4;
  const auto both = [&](BitsVec a, BitsVec b) {
    return hn::BitCast(d64, hn::Max(hn::InterleaveLower(du, a, b), hn::InterleaveUpper(du, a, b)));
  };
  const auto m = both(blocks[0].m, blocks[1].m);
  const auto v = both(blocks[0].v, blocks[1].v);
  alignas(64) uint32_t lanes[kLanes];
  hn::Store(hn::Max(hn::BitCast(du, hn::InterleaveLower(d64, m, v)),
                    hn::BitCast(du, hn::InterleaveUpper(d64, m, v))),
            du, lanes);
  auto largest = hn::Load(d4, lanes);
  for (size_t i = 4; i < kLanes; i += 4) largest = hn::Max(largest, hn::Load(d4, lanes + i));
  return hn::BitCast(PerBlockTag(), largest);
}

/// The first half of a tile's update, which stores nothing. False if there is something special.
template <class Pair, bool kHasL2>
HWY_INLINE bool update_moments(const rules::AdamScalars<float>& s, const Arrays<Pair>& arrays,
                               size_t first, Moments<Pair>& moments) {
  const typename Pair::Units units(arrays.scales());
  Largest largest[kBlocks];
  for (size_t b = 0; b < kBlocks; ++b) {
    const typename Pair::Decoder decoder(units, b);
    Largest block = {hn::Zero(BitsTag()), hn::Zero(BitsTag())};
    for (size_t i = b * kBlock; i < (b + 1) * kBlock; i += 2 * kGroup) {
      typename Pair::Draws::TwoGroups draws(moments.draws, first, i);
      update_moments<Pair, kHasL2, 0>(s, arrays, i, decoder, draws, moments, block);
      update_moments<Pair, kHasL2, 1>(s, arrays, i + kGroup, decoder, draws, moments, block);
    }
    largest[b] = block;
  }
  return moments.scales.set(largest_lanes(largest)) && units.is_usual();
}

/// The second half: weights, codes and scales. Weights wait for the divider, codes do not, so they
/// take turns; that is worth 3 %.
template <class Pair>
HWY_INLINE void store_update(const rules::AdamScalars<float>& s, const Arrays<Pair>& arrays,
                             const Moments<Pair>& moments) {
  FloatVec sum = hn::Zero(FloatTag());
  for (size_t b = 0; b < kBlocks; ++b) {
    const typename Pair::Encoder encoder(moments.scales, b);
    for (size_t i = b * kBlock; i < (b + 1) * kBlock; i += kGroup) {
      store_group(s, arrays, i, encoder, moments, sum);
    }
  }
  arrays.set_scales(moments.scales.at);
  if (!hn::AllTrue(FloatTag(), hn::Eq(sum, sum))) canonicalise_weights(arrays.weight, arrays.low);
}

template <class Pair, bool kHasL2>
size_t update_tiles(const ParameterUpdate& update, size_t first, size_t last) {
  const auto s = update.scalars.as<rules::AdamScalars<float>>();
  Moments<Pair> moments(update);
  for (size_t i = first; i < last; i += kTileElements) {
    const Arrays<Pair> arrays(update, i);
    if (!update_moments<Pair, kHasL2>(s, arrays, i, moments)) return i;
    store_update(s, arrays, moments);
  }
  return last;
}

/// The fused kernel of Adam and AdamW for a pair of formats.
template <class Pair>
size_t run_adam(const ParameterUpdate& update, size_t first, size_t last) {
  const bool has_l2 = update.scalars.as<rules::AdamScalars<float>>().l2 != 0.0f;
  return has_l2 ? update_tiles<Pair, true>(update, first, last)
                : update_tiles<Pair, false>(update, first, last);
}
#endif  // OUTBOARD_HAS_FUSED_KERNELS

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
