// The SIMD version of dynamic_map.h, one per target: one gather for each direction.
#include "hwy/highway.h"
#include "quant/dynamic_map.h"
#include "quant/rounding-inl.h"

#if defined(OUTBOARD_QUANT_DYNAMIC_MAP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_DYNAMIC_MAP_INL_H_
#undef OUTBOARD_QUANT_DYNAMIC_MAP_INL_H_
#else
#define OUTBOARD_QUANT_DYNAMIC_MAP_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

using SignedVec = hn::Vec<SignedTag>;

/// As quant::dynamic_level.
template <bool kIsSigned>
HWY_INLINE FloatVec dynamic_level(BitsVec code) {
  return hn::GatherIndex(FloatTag(), kDynamicTable<kIsSigned>.at, hn::BitCast(SignedTag(), code));
}

/// As quant::dynamic_index.
template <bool kIsSigned, DynamicTies kTies>
HWY_INLINE SignedVec dynamic_index(FloatVec x) {
  const SignedTag ds;
  const auto bits = hn::BitCast(ds, x);
  const auto b = kIsSigned ? hn::And(bits, hn::Set(ds, 0x7FFFFFFF)) : bits;
  const auto first = hn::Set(ds, DynamicCells::kFirst);
  const auto last = hn::Set(ds, DynamicCells::kLast);
  const auto cell = hn::Sub(hn::Min(hn::Max(hn::ShiftRight<16>(b), first), last), first);
  const BitsVec entry = hn::GatherIndex(BitsTag(), kDynamicCells<kIsSigned, kTies>.at, cell);
  auto below = hn::BitCast(ds, hn::And(entry, hn::Set(BitsTag(), 0x1FFFFu)));
  if constexpr (kIsSigned && kTies == DynamicTies::kDistance) {
    const auto more = hn::And(hn::ShiftRight<20>(entry), hn::Set(BitsTag(), 3));
    below = hn::Add(below, hn::And(hn::BitCast(ds, more), hn::ShiftRight<31>(bits)));
  }
  const auto is_below = hn::Lt(hn::And(b, hn::Set(ds, 0xFFFF)), below);
  const auto upper = hn::BitCast(ds, hn::Add(hn::ShiftRight<24>(entry), hn::Set(BitsTag(), 1)));
  return hn::Add(upper, hn::VecFromMask(ds, is_below));
}

/// As quant::dynamic_signed_code; `x` has the value's sign.
template <int kLeast>
HWY_INLINE BitsVec dynamic_signed_code(SignedVec index, FloatVec x) {
  const SignedTag ds;
  const auto sign = hn::ShiftRight<31>(hn::BitCast(ds, x));  // all ones where negative
  index = hn::Min(index, hn::Add(hn::Set(ds, 128), sign));
  if constexpr (kLeast == 1) index = hn::Max(index, hn::Neg(sign));
  const auto offset = hn::Sub(hn::Xor(index, sign), sign);
  return hn::BitCast(BitsTag(), hn::Add(hn::Set(ds, 127), offset));
}

/// The Encoder of a format whose struct names its kIsSigned, kTies and kLeastNegative.
template <class Definition>
struct DynamicVectorEncoder {
  FloatVec scale;
  HWY_INLINE explicit DynamicVectorEncoder(float s) : scale(hn::Set(FloatTag(), s)) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    const FloatVec x = hn::Div(value, scale);
    const auto index = dynamic_index<Definition::kIsSigned, Definition::kTies>(x);
    if constexpr (Definition::kIsSigned) {
      return dynamic_signed_code<Definition::kLeastNegative>(index, x);
    } else {
      return hn::BitCast(BitsTag(), index);
    }
  }
};

template <class Definition>
struct DynamicVectorDecoder {
  FloatVec scale;
  HWY_INLINE explicit DynamicVectorDecoder(float s) : scale(hn::Set(FloatTag(), s)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    const FloatVec level = dynamic_level<Definition::kIsSigned>(code);
    return hn::MulAdd(level, scale, hn::Zero(FloatTag()));
  }
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
