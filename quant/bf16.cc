// CPU codec of the format bf16 (nearest even) for every SIMD target.
#include "quant/bf16.h"

#include <algorithm>

#include "quant/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/bf16.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/dispatch.h"
#include "quant/rounding-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

void decode_bf16(const StateArray& array, size_t first, size_t count, float* out) {
  const uint16_t* codes = static_cast<const uint16_t*>(array.codes) + first;
  const FloatTag df;
  for (size_t i = 0; i < count; i += hn::Lanes(df)) {
    hn::StoreU(f32_from_bf16(load_halfwords(codes + i)), df, out + i);
  }
}

void encode_bf16(const float* in, size_t first, size_t count, size_t elements, const RandomContext&,
                 uint64_t, const StateArray& array) {
  uint16_t* codes = static_cast<uint16_t*>(array.codes) + first;
  const FloatTag df;
  for (size_t i = 0; i < count; i += hn::Lanes(df)) {
    store_halfwords(bf16_nearest(hn::LoadU(df, in + i)), codes + i);
  }
  const size_t existing = std::min(count, elements - std::min(elements, first));
  std::fill(codes + existing, codes + count, uint16_t{0});
}

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard {
namespace quant {
HWY_EXPORT(decode_bf16);
HWY_EXPORT(encode_bf16);
}  // namespace quant

template <>
Codec resolve_codec<quant::BF16>() {
  choose_target();
  return {.is_plain_f32 = false,
          .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_bf16),
          .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_bf16)};
}

}  // namespace outboard
#endif
