// CPU codec of the format nf4 for every SIMD target.
#include "quant/nf4.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/nf4.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/nf4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct NF4Encoder {
  NF4Finder find;
  HWY_INLINE explicit NF4Encoder(float scale) : find(exact::div(1.0f, scale)) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const { return find(value); }
};

struct NF4Decoder {
  FloatVec scale;
  VectorLookup16 table;
  HWY_INLINE explicit NF4Decoder(float block_scale)
      : scale(hn::Set(FloatTag(), block_scale)), table(NF4::levels()) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    return hn::MulAdd(table(code), scale, hn::Zero(FloatTag()));
  }
};

OUTBOARD_BLOCK_CODEC_FUNCTIONS(NF4, nf4, NF4Encoder, NF4Decoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(NF4, nf4)
#endif
