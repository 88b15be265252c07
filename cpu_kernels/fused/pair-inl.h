// Both moments of a tile in their formats: scales, codes, and what is needed between them. A format
// is described by a class for one order of elements in a group, such as
//
//   template <class Order>
//   struct Root4Moment {
//     using Draws = TileDraws;                        // of second moments: TileDraws or NoDraws
//     static constexpr size_t kCodeBits = 4;
//     static constexpr float kUnits = 256.0f;         // that make up a scale
//     static constexpr float kUnitFactor = 1.0f;      // of the decoder's second argument
//     static constexpr float kLeastUsualScale = 0;    // other than 0, that the decoder can take
//     static constexpr float kLeastScale = quant::kSmallestScale;  // below it, a block is of zeros
//     static constexpr float kPositions = 16.0f;      // at which the finder sees the largest value
//     static constexpr bool kScaleIsRoot = false;     // of second moments: is it the largest root?
//     struct Decoder {                                // for one block
//       Decoder(float unit, float scaled_unit);
//       FloatGroup operator()(const uint8_t* codes) const;
//     };
//     struct Finder {                                 // of codes, in the lowest bits of each lane
//       explicit Finder(float factor);                // kPositions / the largest; 0: all are zero
//       BitsVec operator()(FloatVec root, const Draws::Group&, size_t k) const;
//     };                                              // first moments: operator()(m)
//   };
#include "cpu_kernels/exact-inl.h"
#include "cpu_kernels/fused/tile_draws-inl.h"
#include "cpu_kernels/step.h"
#include "hwy/highway.h"
#include "quant/packed_codes-inl.h"
#include "quant/paired_codes-inl.h"

#if defined(OUTBOARD_CPU_KERNELS_FUSED_PAIR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_FUSED_PAIR_INL_H_
#undef OUTBOARD_CPU_KERNELS_FUSED_PAIR_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_FUSED_PAIR_INL_H_
#endif

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

using q::BitsGroup;
using q::BitsTag;
using q::BitsVec;
using q::FloatGroup;

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

/// The formats of m and v, for elements in `OrderOfGroup`.
template <class OrderOfGroup, template <class> class FormatOfM, template <class> class FormatOfV>
struct Pair {
  using Order = OrderOfGroup;
  using M = FormatOfM<Order>;
  using V = FormatOfV<Order>;

  /// What decoders need of a tile's scales.
  struct Units {
    alignas(16) float unit[4];
    alignas(16) float scaled_unit[4];
    bool is_usual;
    HWY_INLINE explicit Units(PerBlock scales) {
      const PerBlockTag d;
      const PerBlock units = hn::Div(scales, per_moment(M::kUnits, V::kUnits));
      hn::Store(units, d, unit);
      hn::Store(hn::Mul(units, per_moment(M::kUnitFactor, V::kUnitFactor)), d, scaled_unit);
      const auto is_large = hn::Ge(scales, per_moment(M::kLeastUsualScale, V::kLeastUsualScale));
      is_usual = hn::AllTrue(d, hn::Or(is_large, hn::Eq(scales, hn::Zero(d))));
    }
  };

  /// Of block b.
  struct Decoder {
    typename M::Decoder m;
    typename V::Decoder v;
    HWY_INLINE Decoder(const Units& units, size_t b)
        : m(units.unit[kOfM + b], units.scaled_unit[kOfM + b]),
          v(units.unit[kOfV + b], units.scaled_unit[kOfV + b]) {}
  };

  /// A tile's new scales, and what encoders need of them.
  struct Scales {
    alignas(16) float at[4];
    alignas(16) float factor[4];
    /// From the largest magnitudes, of roots where they are scales. False: something is special.
    HWY_INLINE bool set(PerBlock largest) {
      const PerBlockTag d;
      const auto exists = hn::Ge(largest, per_moment(M::kLeastScale, V::kLeastScale));
      hn::Store(hn::IfThenElseZero(exists, largest), d, at);
      PerBlock extent = largest;
      if constexpr (!V::kScaleIsRoot) {
        const hn::Half<PerBlockTag> half;
        extent =
            hn::Combine(d, hn::UpperHalf(half, hn::Sqrt(largest)), hn::LowerHalf(half, largest));
      }
      const PerBlock factors = hn::Div(per_moment(M::kPositions, V::kPositions), extent);
      hn::Store(hn::IfThenElseZero(exists, factors), d, factor);
      return hn::AllTrue(d, hn::Lt(largest, hn::Inf(d)));
    }
  };

  /// Of block b.
  struct Encoder {
    typename M::Finder find_m;
    typename V::Finder find_v;
    HWY_INLINE Encoder(const Scales& scales, size_t b)
        : find_m(scales.factor[kOfM + b]), find_v(scales.factor[kOfV + b]) {}
  };

  /// The codes of a group.
  struct Codes {
    BitsGroup m;
    BitsGroup v;
    HWY_INLINE void store(uint8_t* m_codes, uint8_t* v_codes) const {
      if constexpr (M::kCodeBits == 4 && V::kCodeBits == 4) {
        q::store_nibbles(m, v, m_codes, v_codes);
      } else {
        store_codes<M::kCodeBits>(m, m_codes);
        store_codes<V::kCodeBits>(v, v_codes);
      }
    }
  };

 private:
  template <size_t kCodeBits>
  static HWY_INLINE void store_codes(const BitsGroup& codes, uint8_t* to) {
    if constexpr (kCodeBits == 8) {
      Order::store_bytes(codes, to);
    } else {
      q::store_nibbles(codes, to);
    }
  }
};

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
