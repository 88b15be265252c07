// CPU codec of the format ao4_signed for every SIMD target.
#include "quant/ao4_signed.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/ao4_signed.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/dynamic_map4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Ao4Signed, ao4_signed, DynamicVectorEncoder4<Ao4Signed>,
                               DynamicVectorDecoder4<Ao4Signed>)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Ao4Signed, ao4_signed)
#endif
