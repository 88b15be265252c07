// State arrays with blocks between their stored form, fp32, and the padded arrays that kernels work
// on: what state dicts and conversions need. One thread, host memory; owns nothing.
#ifndef OUTBOARD_OFFLOAD_STATE_CODES_H_
#define OUTBOARD_OFFLOAD_STATE_CODES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "outboard/state_format.h"
#include "quant/codec.h"

namespace outboard {

/// The exact content of one array, without what lies beyond its last element. Of a byte that holds
/// one code only, the other half means nothing.
struct StoredState {
  std::span<const uint8_t> codes;  ///< FormatInfo::stored_bytes()
  std::span<const float> scales;   ///< stored_scales()
};

/// Scales that belong to at least one of `elements` elements.
[[nodiscard]] size_t stored_scales(const StateFormat& format, size_t elements);

/// Empty, or what is wrong with `stored` as an array of `elements` elements: lengths, codes that no
/// encoder makes, scales that are negative or not finite.
[[nodiscard]] std::string flaw_of(const StoredState& stored, const StateFormat& format,
                                  size_t elements);

/// Writes `stored` to `array` and makes its padding anew. It must have no flaw.
void restore_state(const StoredState& stored, const StateFormat& format, size_t elements,
                   const StateArray& array);

/// The array's `elements` elements.
void decode_state(const StateArray& array, const StateFormat& format, size_t elements, float* out);

/// Encodes `elements` elements and makes the padding.
void encode_state(const float* in, const StateFormat& format, size_t elements,
                  const RandomContext& random, const StateArray& array);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_STATE_CODES_H_
