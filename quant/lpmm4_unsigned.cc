// CPU codec of the format lpmm4_unsigned for every SIMD target.
#include "quant/lpmm4_unsigned.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/lpmm4_unsigned.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/uniform16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

void decode_lpmm4_unsigned(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Lpmm4Unsigned, UniformVectorDecoder>(array, first, count, out);
}

void encode_lpmm4_unsigned(const float* in, size_t first, size_t count, size_t elements,
                           const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Lpmm4Unsigned, UniformVectorEncoder<Lpmm4Unsigned::kTies>>(
      in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_lpmm4_unsigned);
HWY_EXPORT(encode_lpmm4_unsigned);
}  // namespace quant

template <>
Codec resolve_codec<quant::Lpmm4Unsigned>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_lpmm4_unsigned),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_lpmm4_unsigned)};
}

}  // namespace outboard
#endif
