// CPU codec of the format nf4 for every SIMD target.
#include "quant/nf4.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/nf4.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/table16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct NF4Encoder {
  FloatVec factor;
  VectorLookup16 tree;
  HWY_INLINE explicit NF4Encoder(float scale)
      : factor(hn::Set(FloatTag(), exact::div(1.0f, scale))), tree(NF4::thresholds()) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    return tree.count_thresholds(hn::Mul(value, factor));
  }
};

struct NF4Decoder {
  FloatVec scale;
  VectorLookup16 table;
  HWY_INLINE explicit NF4Decoder(float block_scale)
      : scale(hn::Set(FloatTag(), block_scale)), table(NF4::levels()) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    return hn::MulAdd(table(code), scale, hn::Zero(FloatTag()));
  }
};

void decode_nf4(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<NF4, NF4Decoder>(array, first, count, out);
}

void encode_nf4(const float* in, size_t first, size_t count, size_t elements,
                const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<NF4, NF4Encoder>(in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_nf4);
HWY_EXPORT(encode_nf4);
}  // namespace quant

template <>
Codec resolve_codec<quant::NF4>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_nf4),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_nf4)};
}

}  // namespace outboard
#endif
