// CPU codec of the format e4m3_root for every SIMD target.
#include "quant/e4m3_root.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/e4m3_root.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/float8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct E4M3RootEncoder {
  FloatVec factor;
  HWY_INLINE explicit E4M3RootEncoder(float scale)
      : factor(hn::Set(FloatTag(), E4M3Root::Encoder(scale).factor)) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec random16) const {
    const SignedTag ds;
    const BitsVec code = e4m3_stochastic(hn::Mul(hn::Sqrt(value), factor), random16);
    const auto exists = hn::RebindMask(ds, hn::Gt(value, hn::Zero(FloatTag())));
    const auto least = hn::IfThenElseZero(exists, hn::Set(ds, 1));
    return hn::BitCast(BitsTag(), hn::Max(hn::BitCast(ds, code), least));
  }
};

struct E4M3RootDecoder {
  FloatVec unit;
  HWY_INLINE explicit E4M3RootDecoder(float scale)
      : unit(hn::Set(FloatTag(), E4M3::Decoder(scale).unit)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    const FloatVec root = hn::Mul(f32_from_e4m3(code), unit);
    return hn::Mul(root, root);
  }
};

void decode_e4m3_root(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<E4M3Root, E4M3RootDecoder>(array, first, count, out);
}

void encode_e4m3_root(const float* in, size_t first, size_t count, size_t elements,
                      const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<E4M3Root, E4M3RootEncoder>(in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_e4m3_root);
HWY_EXPORT(encode_e4m3_root);
}  // namespace quant

template <>
Codec resolve_codec<quant::E4M3Root>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_e4m3_root),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_e4m3_root)};
}

}  // namespace outboard
#endif
