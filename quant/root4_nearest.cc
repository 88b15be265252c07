// CPU codec of the format root4_nearest for every SIMD target.
#include "quant/root4_nearest.h"

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/root4_nearest.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/block_codec-inl.h"
#include "quant/dispatch.h"
#include "quant/root4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

struct Root4NearestEncoder {
  VectorRoot4Position position;
  HWY_INLINE explicit Root4NearestEncoder(float scale) : position(scale) {}
  HWY_INLINE BitsVec operator()(FloatVec value, BitsVec) const {
    const SignedTag ds;
    const auto one = hn::Set(ds, 1);
    const auto level = hn::NearestInt(position(value));
    return hn::BitCast(BitsTag(), hn::Sub(hn::Max(level, one), one));
  }
};

void decode_root4_nearest(const StateArray& array, size_t first, size_t count, float* out) {
  decode_blocks<Root4Nearest, Root4Decoder>(array, first, count, out);
}

void encode_root4_nearest(const float* in, size_t first, size_t count, size_t elements,
                          const RandomContext& random, uint64_t offset, const StateArray& array) {
  encode_blocks<Root4Nearest, Root4NearestEncoder>(in, first, count, elements, random, offset,
                                                   array);
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_root4_nearest);
HWY_EXPORT(encode_root4_nearest);
}  // namespace quant

template <>
Codec resolve_codec<quant::Root4Nearest>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_root4_nearest),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_root4_nearest)};
}

}  // namespace outboard
#endif
