// CPU codec of the format root4 for every SIMD target.
#include "quant/root4.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/root4.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/root4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root4Encoder {
  VectorRoot4Position position;
  HWY_INLINE explicit Root4Encoder(float scale) : position(scale) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec random16) const {
    const FloatTag df;
    const SignedTag ds;
    const auto one = hn::Set(df, 1.0f);
    const auto y = position(value);
    const auto below = hn::Max(hn::ConvertTo(df, hn::ConvertTo(ds, y)), one);
    const auto draw = hn::Mul(hn::ConvertTo(df, hn::BitCast(ds, random16)), hn::Set(df, 0x1p-16f));
    const auto chance = hn::Mul(hn::Add(below, one), hn::Sub(y, below));
    const auto is_down = hn::RebindMask(ds, hn::Ge(hn::Mul(draw, y), chance));
    return hn::BitCast(BitsTag(), hn::Add(hn::ConvertTo(ds, below), hn::VecFromMask(ds, is_down)));
  }
};

void decode_root4(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Root4, Root4Decoder>(array, first, count, out);
}

void encode_root4(const float* in, size_t first, size_t count, size_t elements,
                  const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Root4, Root4Encoder>(in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_root4);
HWY_EXPORT(encode_root4);
}  // namespace quant

template <>
Codec resolve_codec<quant::Root4>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_root4),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_root4)};
}

}  // namespace outboard
#endif
