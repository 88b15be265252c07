// CPU codec of the format f32. Kernels work on such arrays in place, so these copies serve readers
// and writers only.
#include "quant/f32.h"

#include <algorithm>
#include <cstring>

#include "quant/codec.h"

namespace outboard {
namespace {

void decode(const StateArray& array, size_t first, size_t count, float* out) {
  std::memcpy(out, static_cast<const float*>(array.codes) + first, count * sizeof(float));
}

void encode(const float* in, size_t first, size_t count, size_t elements, const RandomContext&,
            uint64_t, const StateArray& array) {
  float* codes = static_cast<float*>(array.codes) + first;
  const size_t existing = std::min(count, elements - std::min(elements, first));
  std::memcpy(codes, in, existing * sizeof(float));
  std::fill(codes + existing, codes + count, 0.0f);
}

}  // namespace

template <>
Codec resolve_codec<quant::F32>() {
  return {.is_plain_f32 = true, .decode = &decode, .encode = &encode};
}

}  // namespace outboard
