// CPU codec of the format ao4_unsigned for every SIMD target.
#include "quant/ao4_unsigned.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/ao4_unsigned.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/uniform16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

void decode_ao4_unsigned(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Ao4Unsigned, UniformVectorDecoder>(array, first, count, out);
}

void encode_ao4_unsigned(const float* in, size_t first, size_t count, size_t elements,
                         const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Ao4Unsigned, UniformVectorEncoder<Ao4Unsigned::kTies>>(in, first, count, elements,
                                                                       random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_ao4_unsigned);
HWY_EXPORT(encode_ao4_unsigned);
}  // namespace quant

template <>
Codec resolve_codec<quant::Ao4Unsigned>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_ao4_unsigned),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_ao4_unsigned)};
}

}  // namespace outboard
#endif
