// CPU codec of the format dynamic8_signed for every SIMD target.
#include "quant/dynamic8_signed.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/dynamic8_signed.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/dynamic_map-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Dynamic8Signed, dynamic8_signed,
                               DynamicVectorEncoder<Dynamic8Signed>,
                               DynamicVectorDecoder<Dynamic8Signed>)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Dynamic8Signed, dynamic8_signed)
#endif
