// CPU codec of the format aofp8 for every SIMD target.
#include "quant/aofp8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/aofp8.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/float8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct AoFP8VectorEncoder {
  FloatVec scale;
  HWY_INLINE explicit AoFP8VectorEncoder(float s) : scale(hn::Set(FloatTag(), s)) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    return e4m3_nearest(hn::Div(value, scale));
  }
};

struct AoFP8VectorDecoder {
  FloatVec scale;
  HWY_INLINE explicit AoFP8VectorDecoder(float s) : scale(hn::Set(FloatTag(), s)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const { return hn::Mul(f32_from_e4m3(code), scale); }
};

OUTBOARD_BLOCK_CODEC_FUNCTIONS(AoFP8, aofp8, AoFP8VectorEncoder, AoFP8VectorDecoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(AoFP8, aofp8)
#endif
