// CPU codec of the format sym8 for every SIMD target.
#include "quant/sym8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/sym8.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/companding-inl.h"
#include "quant/define_block_codec.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Sym8Encoder {
  SquareFinder<0> find;
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

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Sym8, sym8, Sym8Encoder, Sym8Decoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Sym8, sym8)
#endif
