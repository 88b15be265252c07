// What every quant/<stem>.cc of a block format would otherwise repeat: its two functions per
// target, and their look-up. Macros, because the SIMD library makes its dispatch tables by name.
#ifndef OUTBOARD_QUANT_DEFINE_BLOCK_CODEC_H_
#define OUTBOARD_QUANT_DEFINE_BLOCK_CODEC_H_

#include "quant/codec.h"
#include "quant/dispatch.h"

/// Once per target, in outboard::quant::HWY_NAMESPACE after block_codec-inl.h: decode_<stem>() and
/// encode_<stem>() over vectors.
#define OUTBOARD_BLOCK_CODEC_FUNCTIONS(type, stem, Encoder, Decoder)                          \
  void decode_##stem(const StateArray& array, size_t first, size_t count, float* out) {       \
    decode_blocks<type, Decoder>(array, first, count, out);                                   \
  }                                                                                           \
  void encode_##stem(const float* in, size_t first, size_t count, size_t elements,            \
                     const RandomContext& random, uint64_t offset, const StateArray& array) { \
    encode_blocks<type, Encoder>(in, first, count, elements, random, offset, array);          \
  }

/// Once, under HWY_ONCE at global scope: resolve_codec() of the format.
#define OUTBOARD_RESOLVE_BLOCK_CODEC(type, stem)                     \
  namespace outboard {                                               \
  namespace quant {                                                  \
  HWY_EXPORT(decode_##stem);                                         \
  HWY_EXPORT(encode_##stem);                                         \
  }                                                                  \
  template <>                                                        \
  Codec resolve_codec<quant::type>() {                               \
    choose_target();                                                 \
    return {.is_plain_f32 = false,                                   \
            .decode = OUTBOARD_SIMD_FUNCTION(quant::decode_##stem),  \
            .encode = OUTBOARD_SIMD_FUNCTION(quant::encode_##stem)}; \
  }                                                                  \
  }

#endif  // OUTBOARD_QUANT_DEFINE_BLOCK_CODEC_H_
