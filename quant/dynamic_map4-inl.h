// The SIMD version of dynamic_map4.h, one per target.
#include "hwy/highway.h"
#include "quant/dynamic_map4.h"
#include "quant/table16-inl.h"

#if defined(OUTBOARD_QUANT_DYNAMIC_MAP4_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_DYNAMIC_MAP4_INL_H_
#undef OUTBOARD_QUANT_DYNAMIC_MAP4_INL_H_
#else
#define OUTBOARD_QUANT_DYNAMIC_MAP4_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

template <class Definition>
struct DynamicVectorEncoder4 {
  FloatVec scale;
  VectorLookup16 tree;
  HWY_INLINE explicit DynamicVectorEncoder4(float s)
      : scale(hn::Set(FloatTag(), s)), tree(Definition::thresholds()) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    return tree.count_thresholds(hn::Div(value, scale));
  }
};

template <class Definition>
struct DynamicVectorDecoder4 {
  FloatVec scale;
  VectorLookup16 table;
  HWY_INLINE explicit DynamicVectorDecoder4(float s)
      : scale(hn::Set(FloatTag(), s)), table(Definition::levels()) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    return hn::MulAdd(table(code), scale, hn::Zero(FloatTag()));
  }
};

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
