// Adam and AdamW with sym8 first and root8 second moments: how adam-inl.h decodes and encodes them.
#include "cpu_kernels/fused.h"
#include "cpu_kernels/fused/kernels.h"
#include "cpu_kernels/step.h"
#include "quant/root8.h"
#include "quant/sym8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/fused/adam_8bit.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/fused/adam-inl.h"
#include "hwy/highway.h"
#include "quant/companding-inl.h"
#include "quant/dispatch.h"
#include "quant/packed_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if OUTBOARD_HAS_FUSED_KERNELS
static_assert(quant::Sym8::kBlockElements == kBlock && quant::Root8::kBlockElements == kBlock);

/// Scales from which every level is a normal number, times 2^16 too.
constexpr float kLeastUsualScale = 0x1p-80f;

/// The root of the least normal number: what is below belongs to a second moment that is flushed.
constexpr float kLeastRoot = 0x1p-63f;

/// The largest level of each format in units.
HWY_INLINE PerBlock levels() { return per_moment(quant::Sym8::kLevels, quant::Root8::kLevels); }

/// Codes of sym8 as c |c| 2^16 unit / 2^16: the product of 16-bit numbers is exact, and so is 2^16.
/// `scaled_unit` is unit / 2^16.
template <class Order>
HWY_INLINE FloatGroup decode_sym8(const uint8_t* codes, float scaled_unit) {
  const FloatVec factor = broadcast(scaled_unit);
  const auto none = hn::Zero(PackedWordTag());
  const auto value = [&](BitsVec level) {
    return hn::Mul(hn::ConvertTo(FloatTag(), hn::BitCast(q::SignedTag(), level)), factor);
  };
  const auto [a, b] = Order::signed_squares(codes);
  return {{value(q::widen_first(none, a)), value(q::widen_second(none, a)),
           value(q::widen_first(none, b)), value(q::widen_second(none, b))}};
}

/// Codes of root8. 2^23 + c^2 needs no conversion, and (2^23 + c^2) unit - 2^23 unit is rounded
/// once. `scaled_unit` is -2^23 unit.
template <class Order>
HWY_INLINE FloatGroup decode_root8(const uint8_t* codes, float unit, float scaled_unit) {
  const FloatVec factor = broadcast(unit);
  const FloatVec offset = broadcast(scaled_unit);
  const auto exponent = hn::Set(PackedWordTag(), 0x4B00);
  const auto value = [&](BitsVec level) {
    const FloatVec root = hn::MulAdd(hn::BitCast(FloatTag(), level), factor, offset);
    return hn::Mul(root, root);
  };
  const auto [a, b] = Order::squares(codes);
  return {{value(q::widen_first(a, exponent)), value(q::widen_second(a, exponent)),
           value(q::widen_first(b, exponent)), value(q::widen_second(b, exponent))}};
}

template <class OrderOfGroup>
struct Sym8Root8 {
  using Order = OrderOfGroup;
  using Draws = NoDraws;
  static constexpr size_t kCodeBits = 8;
  static constexpr bool kScalesAreRoots = true;

  /// The scales' quotients by the largest levels, for both formats and blocks at once.
  struct Units {
    alignas(16) float unit[4];
    alignas(16) float scaled_unit[4];
    bool are_usual;
    HWY_INLINE explicit Units(PerBlock scales) {
      const PerBlockTag d;
      const PerBlock units = hn::Div(scales, levels());
      hn::Store(units, d, unit);
      hn::Store(hn::Mul(units, per_moment(0x1p-16f, -0x1p23f)), d, scaled_unit);
      const auto has_levels = hn::Ge(scales, per_moment(kLeastUsualScale, 0.0f));
      are_usual = hn::AllTrue(d, hn::Or(has_levels, hn::Eq(scales, hn::Zero(d))));
    }
    HWY_INLINE bool is_usual() const { return are_usual; }
  };

  struct Decoder {
    const Units& units;
    size_t block;
    HWY_INLINE Decoder(const Units& of_tile, size_t b) : units(of_tile), block(b) {}
    HWY_INLINE FloatGroup m(const uint8_t* codes) const {
      return decode_sym8<Order>(codes, units.scaled_unit[kOfM + block]);
    }
    HWY_INLINE FloatGroup v(const uint8_t* codes) const {
      return decode_root8<Order>(codes, units.unit[kOfV + block], units.scaled_unit[kOfV + block]);
    }
  };

  /// Factors are 0 for blocks of zeros, whose codes are those of 0 then.
  struct Scales {
    alignas(16) float at[4];
    alignas(16) float factor[4];
    HWY_INLINE bool set(PerBlock largest) {
      const PerBlockTag d;
      const auto exists = hn::Ge(largest, per_moment(quant::kSmallestScale, kLeastRoot));
      hn::Store(hn::IfThenElseZero(exists, largest), d, at);
      hn::Store(hn::IfThenElseZero(exists, hn::Div(levels(), largest)), d, factor);
      return hn::AllTrue(d, hn::Lt(largest, hn::Inf(d)));
    }
  };

  struct Encoder {
    q::SquareFinder<0> find_m;
    q::SquareFinder<1> find_root;
    HWY_INLINE Encoder(const Scales& scales, size_t b)
        : find_m(scales.factor[kOfM + b]), find_root(scales.factor[kOfV + b]) {}
    /// The codes of a group under way.
    struct Codes {
      BitsVec m[4];
      BitsVec v[4];
    };
    HWY_INLINE Codes begin(const Draws&, size_t) const {
      Codes codes;
      return codes;
    }
    template <size_t k>
    HWY_INLINE void find_codes(FloatVec m, FloatVec root, Codes& codes) const {
      codes.m[k] = q::sym8_code(find_m, m);
      codes.v[k] = q::root8_code(find_root, root, hn::Ge(root, broadcast(kLeastRoot)));
    }
    HWY_INLINE void store(const Codes& codes, uint8_t* m_codes, uint8_t* v_codes) const {
      const auto& [m, v] = codes;
      Order::store_bytes(q::narrow_to_bytes(m[0], m[1], m[2], m[3]), m_codes);
      Order::store_bytes(q::narrow_to_bytes(v[0], v[1], v[2], v[3]), v_codes);
    }
  };
};

size_t run_adam_8bit(const ParameterUpdate& update, size_t first, size_t last) {
  return run_adam_of_any_weights<Sym8Root8<q::MemoryOrder>, Sym8Root8<q::PackOrder>>(update, first,
                                                                                     last);
}
#else
size_t run_adam_8bit(const ParameterUpdate&, size_t first, size_t) { return first; }
#endif

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {

HWY_EXPORT(run_adam_8bit);

FusedKernel fused_adam_8bit() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_adam_8bit);
}

}  // namespace outboard::cpu
#endif
