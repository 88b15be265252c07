// CPU codec of the format root8s for every SIMD target.
#include "quant/root8s.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/root8s.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/define_block_codec.h"
#include "quant/root8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root8StochasticEncoder {
  FloatVec factor;
  HWY_INLINE explicit Root8StochasticEncoder(float scale)
      : factor(hn::Set(FloatTag(), Root8::Encoder(scale).factor)) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec random16) const {
    const FloatTag df;
    const SignedTag ds;
    const auto one = hn::Set(df, 1.0f);
    const auto z = hn::Mul(hn::Sqrt(value), factor);
    const auto floor = hn::ConvertTo(df, hn::ConvertTo(ds, hn::Sqrt(z)));
    const auto below = hn::Min(floor, hn::Set(df, 254.0f));
    const auto gap = hn::Add(hn::Add(below, below), one);
    const auto draw = hn::Mul(hn::ConvertTo(df, hn::BitCast(ds, random16)), hn::Set(df, 0x1p-16f));
    const auto excess = hn::Sub(z, hn::Mul(below, below));
    const auto is_up = hn::RebindMask(ds, hn::Lt(hn::Mul(draw, gap), excess));
    const auto index = hn::Sub(hn::ConvertTo(ds, below), hn::VecFromMask(ds, is_up));
    const auto exists = hn::RebindMask(ds, hn::Gt(value, hn::Zero(df)));
    const auto least = hn::IfThenElseZero(exists, hn::Set(ds, 1));
    return hn::BitCast(BitsTag(), hn::Max(index, least));
  }
};

OUTBOARD_BLOCK_CODEC_FUNCTIONS(Root8Stochastic, root8s, Root8StochasticEncoder, Root8Decoder)

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
OUTBOARD_RESOLVE_BLOCK_CODEC(Root8Stochastic, root8s)
#endif
