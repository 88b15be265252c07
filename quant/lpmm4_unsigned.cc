// CPU codec of the format lpmm4_unsigned for every SIMD target.
#include "quant/lpmm4_unsigned.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/lpmm4_unsigned.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/uniform16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Lpmm4Unsigned, lpmm4_unsigned,
                               UniformVectorEncoder<Lpmm4Unsigned::kTies>, UniformVectorDecoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Lpmm4Unsigned, lpmm4_unsigned)
#endif
