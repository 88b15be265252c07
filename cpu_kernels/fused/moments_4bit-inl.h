// Moments in nf4 and root4 for the fused kernels, as pair-inl.h describes it, in pair order.
#include "cpu_kernels/exact-inl.h"
#include "cpu_kernels/fused/pair-inl.h"
#include "hwy/highway.h"
#include "quant/nf4-inl.h"
#include "quant/nf4.h"
#include "quant/paired_codes-inl.h"
#include "quant/root4-inl.h"
#include "quant/root4.h"

#if defined(OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_4BIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_4BIT_INL_H_
#undef OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_4BIT_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_4BIT_INL_H_
#endif

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

/// The levels of root4 in units of scale / 256.
constexpr quant::Table16 kSquares = {
    {1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225, 256}};

template <class Order>
struct Nf4Moment {
  static_assert(quant::NF4::kBlockElements == kBlock);
  static constexpr size_t kCodeBits = 4;
  static constexpr float kUnits = 1.0f;
  static constexpr float kUnitFactor = 1.0f;
  static constexpr float kLeastUsualScale = 0.0f;
  static constexpr float kLeastScale = quant::kSmallestScale;
  static constexpr float kPositions = 1.0f;

  /// The levels, formed as the format's decoder does.
  struct Decoder {
    q::VectorLookup16 levels;
    HWY_INLINE Decoder(float scale, float)
        : levels(q::VectorLookup16(quant::NF4::levels()).map([scale](FloatVec level) {
            return hn::MulAdd(level, broadcast(scale), hn::Zero(FloatTag()));
          })) {}
    HWY_INLINE FloatGroup operator()(const uint8_t* codes) const {
      return q::look_up_nibbles(codes, levels);
    }
  };

  struct Finder {
    q::NF4Finder find;
    HWY_INLINE explicit Finder(float factor) : find(factor) {}
    HWY_INLINE BitsVec operator()(FloatVec m) const { return find(m); }
  };
};

template <class Order>
struct Root4Moment {
  static_assert(quant::Root4::kBlockElements == kBlock);
  using Draws = TileDraws;
  static constexpr size_t kCodeBits = 4;
  static constexpr float kUnits = 256.0f;
  static constexpr float kUnitFactor = 1.0f;
  static constexpr float kLeastUsualScale = 0.0f;
  static constexpr float kLeastScale = quant::kSmallestScale;
  static constexpr float kPositions = 16.0f;
  static constexpr bool kScaleIsRoot = false;

  struct Decoder {
    q::VectorLookup16 levels;
    HWY_INLINE Decoder(float unit, float)
        : levels(q::VectorLookup16(kSquares).map(
              [unit](FloatVec square) { return hn::Mul(square, broadcast(unit)); })) {}
    HWY_INLINE FloatGroup operator()(const uint8_t* codes) const {
      return q::look_up_nibbles(codes, levels);
    }
  };

  /// Positions need no minimum: fl(r fl(16 / r)) is at most 16 (1 + 2^-24), which rounds to 16.
  struct Finder {
    FloatVec root_factor;
    HWY_INLINE explicit Finder(float factor) : root_factor(broadcast(factor)) {}
    HWY_INLINE BitsVec operator()(FloatVec root, const Draws::Group& draws, size_t k) const {
      return q::root4_code(hn::Mul(root, root_factor), draws.at[k]);
    }
  };
};

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
