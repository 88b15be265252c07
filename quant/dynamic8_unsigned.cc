// CPU codec of the format dynamic8_unsigned for every SIMD target.
#include "quant/dynamic8_unsigned.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/dynamic8_unsigned.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/dynamic_map-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Dynamic8Unsigned, dynamic8_unsigned,
                               DynamicVectorEncoder<Dynamic8Unsigned>,
                               DynamicVectorDecoder<Dynamic8Unsigned>)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Dynamic8Unsigned, dynamic8_unsigned)
#endif
