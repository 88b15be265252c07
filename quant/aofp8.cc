// CPU codec of the format aofp8 for every SIMD target.
#include "quant/aofp8.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/aofp8.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
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

void decode_aofp8(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<AoFP8, AoFP8VectorDecoder>(array, first, count, out);
}

void encode_aofp8(const float* in, size_t first, size_t count, size_t elements,
                  const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<AoFP8, AoFP8VectorEncoder>(in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_aofp8);
HWY_EXPORT(encode_aofp8);
}  // namespace quant

template <>
Codec resolve_codec<quant::AoFP8>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_aofp8),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_aofp8)};
}

}  // namespace outboard
#endif
