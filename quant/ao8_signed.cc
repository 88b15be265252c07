// CPU codec of the format ao8_signed for every SIMD target.
#include "quant/ao8_signed.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/ao8_signed.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/dynamic_map-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

void decode_ao8_signed(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Ao8Signed, DynamicVectorDecoder<Ao8Signed>>(array, first, count, out);
}

void encode_ao8_signed(const float* in, size_t first, size_t count, size_t elements,
                       const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Ao8Signed, DynamicVectorEncoder<Ao8Signed>>(in, first, count, elements, random,
                                                            offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_ao8_signed);
HWY_EXPORT(encode_ao8_signed);
}  // namespace quant

template <>
Codec resolve_codec<quant::Ao8Signed>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_ao8_signed),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_ao8_signed)};
}

}  // namespace outboard
#endif
