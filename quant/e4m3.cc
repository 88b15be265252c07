// CPU codec of the format e4m3 for every SIMD target.
#include "quant/e4m3.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/e4m3.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/float8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct E4M3Encoder {
  FloatVec factor;
  HWY_INLINE explicit E4M3Encoder(float scale)
      : factor(hn::Set(FloatTag(), E4M3::Encoder(scale).factor)) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    return e4m3_nearest(hn::Mul(value, factor));
  }
};

struct E4M3Decoder {
  FloatVec unit;
  HWY_INLINE explicit E4M3Decoder(float scale)
      : unit(hn::Set(FloatTag(), E4M3::Decoder(scale).unit)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const { return hn::Mul(f32_from_e4m3(code), unit); }
};

void decode_e4m3(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<E4M3, E4M3Decoder>(array, first, count, out);
}

void encode_e4m3(const float* in, size_t first, size_t count, size_t elements,
                 const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<E4M3, E4M3Encoder>(in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_e4m3);
HWY_EXPORT(encode_e4m3);
}  // namespace quant

template <>
Codec resolve_codec<quant::E4M3>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_e4m3),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_e4m3)};
}

}  // namespace outboard
#endif
