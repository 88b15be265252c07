// CPU codec of the format root4 for every SIMD target.
#include "quant/root4.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/root4.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/root4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root4Encoder {
  VectorRoot4Position position;
  HWY_INLINE explicit Root4Encoder(float scale) : position(scale) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec random16) const {
    return root4_code(position(value), random16);
  }
};

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Root4, root4, Root4Encoder, Root4Decoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Root4, root4)
#endif
