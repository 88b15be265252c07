// CPU codec of the format e4m3 for every SIMD target.
#include "quant/e4m3.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/e4m3.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
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

OUTBOARD_BLOCK_CODEC_FUNCTIONS(E4M3, e4m3, E4M3Encoder, E4M3Decoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(E4M3, e4m3)
#endif
