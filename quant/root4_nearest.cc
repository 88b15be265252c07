// CPU codec of the format root4_nearest for every SIMD target.
#include "quant/root4_nearest.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/root4_nearest.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/root4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root4NearestEncoder {
  VectorRoot4Position position;
  HWY_INLINE explicit Root4NearestEncoder(float scale) : position(scale) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    const SignedTag ds;
    const auto one = hn::Set(ds, 1);
    const auto level = hn::NearestInt(position(value));
    return hn::BitCast(BitsTag(), hn::Sub(hn::Max(level, one), one));
  }
};

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Root4Nearest, root4_nearest, Root4NearestEncoder, Root4Decoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Root4Nearest, root4_nearest)
#endif
