// CPU codec of the format ao4_unsigned for every SIMD target.
#include "quant/ao4_unsigned.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/ao4_unsigned.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/uniform16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Ao4Unsigned, ao4_unsigned, UniformVectorEncoder<Ao4Unsigned::kTies>,
                               UniformVectorDecoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Ao4Unsigned, ao4_unsigned)
#endif
