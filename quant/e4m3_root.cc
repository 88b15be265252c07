// CPU codec of the format e4m3_root for every SIMD target.
#include "quant/e4m3_root.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/e4m3_root.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
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

OUTBOARD_BLOCK_CODEC_FUNCTIONS(E4M3Root, e4m3_root, E4M3RootEncoder, E4M3RootDecoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(E4M3Root, e4m3_root)
#endif
