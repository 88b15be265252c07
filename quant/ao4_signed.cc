// CPU codec of the format ao4_signed for every SIMD target.
#include "quant/ao4_signed.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/ao4_signed.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/dynamic_map4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

void decode_ao4_signed(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Ao4Signed, DynamicVectorDecoder4<Ao4Signed>>(array, first, count, out);
}

void encode_ao4_signed(const float* in, size_t first, size_t count, size_t elements,
                       const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Ao4Signed, DynamicVectorEncoder4<Ao4Signed>>(in, first, count, elements, random,
                                                             offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_ao4_signed);
HWY_EXPORT(encode_ao4_signed);
}  // namespace quant

template <>
Codec resolve_codec<quant::Ao4Signed>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_ao4_signed),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_ao4_signed)};
}

}  // namespace outboard
#endif
