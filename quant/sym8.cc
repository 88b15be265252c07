// CPU codec of the format sym8 for every SIMD target.
#include "quant/sym8.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/sym8.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/companding-inl.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Sym8Encoder {
  SquareFinder find;
  HWY_INLINE explicit Sym8Encoder(float scale) : find(Sym8::Encoder(scale).factor) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const { return sym8_code(find, value); }
};

struct Sym8Decoder {
  FloatVec unit;
  HWY_INLINE explicit Sym8Decoder(float scale)
      : unit(hn::Set(FloatTag(), Sym8::Decoder(scale).unit)) {}
  HWY_INLINE FloatVec operator()(BitsVec code) const {
    const SignedTag ds;
    const auto c = hn::ShiftRight<24>(hn::ShiftLeft<24>(hn::BitCast(ds, code)));
    const auto index = hn::ConvertTo(FloatTag(), c);
    return hn::Mul(hn::Mul(index, hn::Abs(index)), unit);
  }
};

void decode_sym8(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Sym8, Sym8Decoder>(array, first, count, out);
}

void encode_sym8(const float* in, size_t first, size_t count, size_t elements,
                 const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Sym8, Sym8Encoder>(in, first, count, elements, random, offset, array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_sym8);
HWY_EXPORT(encode_sym8);
}  // namespace quant

template <>
Codec resolve_codec<quant::Sym8>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_sym8),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_sym8)};
}

}  // namespace outboard
#endif
