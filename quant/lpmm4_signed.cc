// CPU codec of the format lpmm4_signed for every SIMD target.
#include "quant/lpmm4_signed.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/lpmm4_signed.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/dynamic_map4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Lpmm4Signed, lpmm4_signed, DynamicVectorEncoder4<Lpmm4Signed>,
                               DynamicVectorDecoder4<Lpmm4Signed>)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Lpmm4Signed, lpmm4_signed)
#endif
