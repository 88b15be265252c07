// Moments in sym8 and root8 for the fused kernels, as pair-inl.h describes it. Codes are widened as
// they are loaded.
#include "cpu_kernels/exact-inl.h"
#include "cpu_kernels/fused/pair-inl.h"
#include "hwy/highway.h"
#include "quant/companding-inl.h"
#include "quant/packed_codes-inl.h"
#include "quant/root8.h"
#include "quant/sym8.h"

#if defined(OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_8BIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_8BIT_INL_H_
#undef OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_8BIT_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_FUSED_MOMENTS_8BIT_INL_H_
#endif

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

/// The root of the least normal number: what is below belongs to a second moment that is flushed.
constexpr float kLeastRoot = 0x1p-63f;

/// Codes as c |c| 2^16 unit / 2^16: the product of 16-bit numbers is exact, and so is 2^16.
template <class Order>
struct Sym8Moment {
  static_assert(quant::Sym8::kBlockElements == kBlock);
  static constexpr size_t kCodeBits = 8;
  static constexpr float kUnits = quant::Sym8::kLevels;
  static constexpr float kUnitFactor = 0x1p-16f;
  static constexpr float kLeastUsualScale = 0x1p-80f;  // every level is normal, times 2^16 too
  static constexpr float kLeastScale = quant::kSmallestScale;
  static constexpr float kPositions = quant::Sym8::kLevels;

  struct Decoder {
    float scaled_unit;
    HWY_INLINE Decoder(float, float scaled) : scaled_unit(scaled) {}
    HWY_INLINE FloatGroup operator()(const uint8_t* codes) const {
      const FloatVec factor = broadcast(scaled_unit);
      const auto value = [&](BitsVec level) {
        return hn::Mul(hn::ConvertTo(FloatTag(), hn::BitCast(q::SignedTag(), level)), factor);
      };
      const auto words = Order::signed_squares(codes);
      const auto [a, b] = Order::widen_high(words.first);
      const auto [c, d] = Order::widen_high(words.second);
      return {{value(a), value(b), value(c), value(d)}};
    }
  };

  struct Finder {
    q::SquareFinder<0> find;
    HWY_INLINE explicit Finder(float factor) : find(factor) {}
    HWY_INLINE BitsVec operator()(FloatVec m) const { return q::sym8_code(find, m); }
  };
};

/// 2^23 + c^2 needs no conversion, and (2^23 + c^2) unit - 2^23 unit is rounded once.
template <class Order>
struct Root8Moment {
  static_assert(quant::Root8::kBlockElements == kBlock);
  using Draws = NoDraws;
  static constexpr size_t kCodeBits = 8;
  static constexpr float kUnits = quant::Root8::kLevels;
  static constexpr float kUnitFactor = -0x1p23f;
  static constexpr float kLeastUsualScale = 0.0f;
  static constexpr float kLeastScale = kLeastRoot;
  static constexpr float kPositions = quant::Root8::kLevels;
  static constexpr bool kScaleIsRoot = true;

  struct Decoder {
    float unit;
    float scaled_unit;
    HWY_INLINE Decoder(float plain, float scaled) : unit(plain), scaled_unit(scaled) {}
    HWY_INLINE FloatGroup operator()(const uint8_t* codes) const {
      const FloatVec factor = broadcast(unit);
      const FloatVec offset = broadcast(scaled_unit);
      const auto value = [&](BitsVec level) {
        const FloatVec root = hn::MulAdd(hn::BitCast(FloatTag(), level), factor, offset);
        return hn::Mul(root, root);
      };
      const auto words = Order::squares(codes);
      const auto exponent = hn::Set(q::PackedWordTag(), 0x4B00);
      const auto [a, b] = Order::join(words.first, exponent);
      const auto [c, d] = Order::join(words.second, exponent);
      return {{value(a), value(b), value(c), value(d)}};
    }
  };

  struct Finder {
    q::SquareFinder<1> find;
    HWY_INLINE explicit Finder(float factor) : find(factor) {}
    HWY_INLINE BitsVec operator()(FloatVec root, const Draws::Group&, size_t) const {
      return q::root8_code(find, root, hn::Ge(root, broadcast(kLeastRoot)));
    }
  };
};

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
