// CPU codec of the format lpmm4_signed for every SIMD target.
#include "quant/lpmm4_signed.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/lpmm4_signed.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/dynamic_map4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

void decode_lpmm4_signed(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Lpmm4Signed, DynamicVectorDecoder4<Lpmm4Signed>>(array, first, count, out);
}

void encode_lpmm4_signed(const float* in, size_t first, size_t count, size_t elements,
                         const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Lpmm4Signed, DynamicVectorEncoder4<Lpmm4Signed>>(in, first, count, elements, random,
                                                                 offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_lpmm4_signed);
HWY_EXPORT(encode_lpmm4_signed);
}  // namespace quant

template <>
Codec resolve_codec<quant::Lpmm4Signed>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_lpmm4_signed),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_lpmm4_signed)};
}

}  // namespace outboard
#endif
