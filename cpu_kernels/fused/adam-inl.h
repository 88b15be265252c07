// Adam and AdamW with moments in blocks of 128, a tile at a time, one version per target. The
// formulas are those of adam_moments-inl.h and of the formats; what is here is their order. It
// takes half the time of the passes in cache, because four vectors are widened and narrowed
// together, the encoder takes the root that the update needs anyway, encoding runs while the
// divider is busy with the weights, and what only special numbers need is left out: a tile in which
// one appears is left to the general passes. How weights are stored is described by a class
// `Weights` (weights-inl.h), how moments are stored by a `Pair` of two formats (pair-inl.h).
#include <algorithm>
#include <type_traits>

#include "cpu_kernels/fused/pair-inl.h"
#include "cpu_kernels/fused/weights-inl.h"
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
/// A tile between decode and encode: its moments, in groups, the blocks' scales, random numbers.
template <class Pair, class Weights>
struct alignas(64) Tile {
  using CodeDraws = typename Pair::V::Draws;
  using WeightDraws = typename Weights::Draws;
  /// Code that draws for both is so long that twice of it is slower than a loop (5 to 12 %);
  /// everything else is faster twice (up to 4 %).
  static constexpr bool kDrawsTwice =
      std::is_same_v<CodeDraws, TileDraws> && std::is_same_v<WeightDraws, TileDraws>;

  float m[kTileElements];
  float root[kTileElements];
  typename Pair::Scales scales;
  CodeDraws code_draws;
  WeightDraws weight_draws;

  explicit Tile(const ParameterUpdate& update) : code_draws(update, 2), weight_draws(update, 0) {}
};

/// A block's largest magnitudes, as bits. `v` is the largest root if the scales are roots.
struct Largest {
  BitsVec m;
  BitsVec v;
};

/// The parameter's moments from one tile on.
template <class Pair>
struct StoredMoments {
  uint8_t* m;
  uint8_t* v;
  float* m_scales;
  float* v_scales;

  StoredMoments(const ParameterUpdate& update, size_t first)
      : m(static_cast<uint8_t*>(update.states[0].codes) + first * Pair::M::kCodeBits / 8),
        v(static_cast<uint8_t*>(update.states[1].codes) + first * Pair::V::kCodeBits / 8),
        m_scales(update.states[0].scales + first / kBlock),
        v_scales(update.states[1].scales + first / kBlock) {}

  /// Codes from those of element i on, which is even.
  HWY_INLINE uint8_t* m_at(size_t i) const { return m + i * Pair::M::kCodeBits / 8; }
  HWY_INLINE uint8_t* v_at(size_t i) const { return v + i * Pair::V::kCodeBits / 8; }

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

/// Decodes the moments of the group at `i`, updates them and takes the root. kGroupOfPair: which of
/// the two groups that draw together it is.
template <bool kHasL2, size_t kGroupOfPair, class Pair, class Weights, class MoreDraws>
HWY_INLINE void update_moments(const rules::AdamScalars<float>& s, const Weights& weights,
                               const StoredMoments<Pair>& stored,
                               const typename Pair::Decoder& decoder, size_t i,
                               const MoreDraws& draw, Tile<Pair, Weights>& tile, Largest& largest) {
  const FloatGroup gradient = weights.gradient(i);
  const FloatGroup old_m = decoder.m(stored.m_at(i));
  const FloatGroup old_v = decoder.v(stored.v_at(i));
  FloatGroup weight = gradient;
  if constexpr (kHasL2) weight = weights.load(i);
  for_each_vector([&](auto vector) {
    constexpr size_t k = decltype(vector)::value;
    const FloatVec g = adam_gradient<kHasL2>(s, gradient.at[k], weight.at[k]);
    const FloatVec v = ema_of_squares(old_v.at[k], g, s.beta2, s.one_minus_beta2);
    const FloatVec root = hn::Sqrt(v);
    const FloatVec m = lerp_by_less_than_half(old_m.at[k], g, s.one_minus_beta1);
    largest.m = hn::Max(largest.m, hn::BitCast(BitsTag(), hn::Abs(m)));
    largest.v = hn::Max(largest.v, hn::BitCast(BitsTag(), Pair::V::kScaleIsRoot ? root : v));
    hn::Store(m, FloatTag(), tile.m + i + k * kLanes);
    hn::Store(root, FloatTag(), tile.root + i + k * kLanes);
    draw(std::integral_constant<size_t, 4 * kGroupOfPair + k>());
  });
}

/// Updates and rounds the weights of the group at `i` and encodes its moments.
template <class Pair, class Weights>
HWY_INLINE void store_group(const rules::AdamScalars<float>& s, const StoredMoments<Pair>& stored,
                            const typename Pair::Encoder& encoder, size_t i,
                            const Tile<Pair, Weights>& tile, Weights& weights) {
  FloatGroup weight = weights.load(i);
  const auto draws = tile.code_draws.template at<typename Pair::Order>(i);
  for (size_t k = 0; k < 4; ++k) {
    const FloatVec m = hn::Load(FloatTag(), tile.m + i + k * kLanes);
    const FloatVec root = hn::Load(FloatTag(), tile.root + i + k * kLanes);
    weight.at[k] = adam_weight<true>(s, weight.at[k], m, root);
  }
  weights.store(weight, tile.weight_draws, i);
  const auto find_m = [&](size_t k) {
    return encoder.find_m(hn::Load(FloatTag(), tile.m + i + k * kLanes));
  };
  const auto find_v = [&](size_t k) {
    return encoder.find_v(hn::Load(FloatTag(), tile.root + i + k * kLanes), draws, k);
  };
  const typename Pair::Codes codes = {{{find_m(0), find_m(1), find_m(2), find_m(3)}},
                                      {{find_v(0), find_v(1), find_v(2), find_v(3)}}};
  codes.store(stored.m_at(i), stored.v_at(i));
}

/// The largest lanes of both blocks at once.
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

/// The first half of block b's update.
template <bool kHasL2, class Pair, class Weights>
HWY_INLINE Largest update_block(const rules::AdamScalars<float>& s, const Weights& weights,
                                const StoredMoments<Pair>& stored, size_t first,
                                const typename Pair::Units& units, size_t b,
                                Tile<Pair, Weights>& tile) {
  const typename Pair::Decoder decoder(units, b);
  Largest largest = {hn::Zero(BitsTag()), hn::Zero(BitsTag())};
  for (size_t i = b * kBlock; i < (b + 1) * kBlock; i += 2 * kGroup) {
    typename Tile<Pair, Weights>::CodeDraws::TwoGroups code_draws(tile.code_draws, first, i);
    typename Tile<Pair, Weights>::WeightDraws::TwoGroups weight_draws(tile.weight_draws, first, i);
    const auto draw = [&](auto part) {
      code_draws.template run_part<decltype(part)::value>();
      weight_draws.template run_part<decltype(part)::value>();
    };
    update_moments<kHasL2, 0>(s, weights, stored, decoder, i, draw, tile, largest);
    update_moments<kHasL2, 1>(s, weights, stored, decoder, i + kGroup, draw, tile, largest);
  }
  return largest;
}

/// The first half of a tile's update, which stores nothing. False if there is something special.
template <bool kHasL2, class Pair, class Weights>
HWY_INLINE bool update_moments(const rules::AdamScalars<float>& s, const Weights& weights,
                               const StoredMoments<Pair>& stored, size_t first,
                               Tile<Pair, Weights>& tile) {
  const typename Pair::Units units(stored.scales());
  const Largest none = {hn::Zero(BitsTag()), hn::Zero(BitsTag())};
  Largest largest[kBlocks] = {none, none};
  if constexpr (Tile<Pair, Weights>::kDrawsTwice) {
    for (size_t b = 0; b < kBlocks; ++b) {
      largest[b] = update_block<kHasL2>(s, weights, stored, first, units, b, tile);
    }
  } else {
    largest[0] = update_block<kHasL2>(s, weights, stored, first, units, 0, tile);
    largest[1] = update_block<kHasL2>(s, weights, stored, first, units, 1, tile);
  }
  return tile.scales.set(largest_lanes(largest)) && units.is_usual;
}

/// The second half: weights, codes and scales. Weights wait for the divider, codes do not, so they
/// take turns; that is worth 3 %.
template <class Pair, class Weights>
HWY_INLINE void store_update(const rules::AdamScalars<float>& s, Weights& weights,
                             const StoredMoments<Pair>& stored, const Tile<Pair, Weights>& tile) {
  for (size_t b = 0; b < kBlocks; ++b) {
    const typename Pair::Encoder encoder(tile.scales, b);
    for (size_t i = b * kBlock; i < (b + 1) * kBlock; i += kGroup) {
      store_group(s, stored, encoder, i, tile, weights);
    }
  }
  stored.set_scales(tile.scales.at);
  weights.finish();
}

template <class Pair, class Weights, bool kHasL2>
size_t update_tiles(const ParameterUpdate& update, size_t first, size_t last) {
  const auto s = update.scalars.as<rules::AdamScalars<float>>();
  Tile<Pair, Weights> tile(update);
  for (size_t i = first; i < last; i += kTileElements) {
    const StoredMoments<Pair> stored(update, i);
    Weights weights(update, i);
    if (!update_moments<kHasL2>(s, weights, stored, i, tile)) return i;
    store_update(s, weights, stored, tile);
  }
  return last;
}

/// The fused kernel of Adam and AdamW for a pair of formats and a kind of weights.
template <class Pair, class Weights>
size_t run_adam(const ParameterUpdate& update, size_t first, size_t last) {
  const bool has_l2 = update.scalars.as<rules::AdamScalars<float>>().l2 != 0.0f;
  return has_l2 ? update_tiles<Pair, Weights, true>(update, first, last)
                : update_tiles<Pair, Weights, false>(update, first, last);
}

/// The same for whichever weights the update has: fp32 with `PairForF32`, bf16 with `Pair`.
template <class PairForF32, class Pair>
size_t run_adam_of_any_weights(const ParameterUpdate& update, size_t first, size_t last) {
  using Order = typename Pair::Order;
  switch (update.master_format) {
    case MasterFormat::kWeight:
      return run_adam<PairForF32, F32Weights<typename PairForF32::Order>>(update, first, last);
    case MasterFormat::kSplit:
      return run_adam<Pair, SplitWeights<Order>>(update, first, last);
    case MasterFormat::kSplit8:
      return run_adam<Pair, Split8Weights<Order>>(update, first, last);
    case MasterFormat::kStochastic:
      return run_adam<Pair, StochasticWeights<Order>>(update, first, last);
    case MasterFormat::kF32:
      break;  // fused_kernel() does not come here
  }
  return first;
}
#endif  // OUTBOARD_HAS_FUSED_KERNELS

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
