// CPU codec of the format root8 for every SIMD target.
#include "quant/root8.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/root8.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/companding-inl.h"
#include "quant/dispatch.h"
#include "quant/root8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root8Encoder {
  SquareFinder find;
  HWY_INLINE explicit Root8Encoder(float scale) : find(Root8::Encoder(scale).factor) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    return root8_code(find, hn::Sqrt(value), hn::Gt(value, hn::Zero(FloatTag())));
  }
};

void decode_root8(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Root8, Root8Decoder>(array, first, count, out);
}

void encode_root8(const float* in, size_t first, size_t count, size_t elements,
                  const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Root8, Root8Encoder>(in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_root8);
HWY_EXPORT(encode_root8);
}  // namespace quant

template <>
Codec resolve_codec<quant::Root8>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_root8),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_root8)};
}

}  // namespace outboard
#endif
