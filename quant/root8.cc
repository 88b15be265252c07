// CPU codec of the format root8 for every SIMD target.
#include "quant/root8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/root8.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/companding-inl.h"
#include "quant/define_block_codec.h"
#include "quant/root8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root8Encoder {
  SquareFinder<1> find;
  HWY_INLINE explicit Root8Encoder(float scale) : find(Root8::Encoder(scale).factor) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    return root8_code(find, hn::Sqrt(value), hn::Gt(value, hn::Zero(FloatTag())));
  }
};

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Root8, root8, Root8Encoder, Root8Decoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Root8, root8)
#endif
