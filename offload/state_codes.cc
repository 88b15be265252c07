// Stored codes and scales to arrays and back; see state_codes.h.
#include "offload/state_codes.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace outboard {

namespace {

// What encoders write where there is nothing but zeros.
struct Zeros {
  uint8_t codes;  // a byte of them
  float scale;    // of a whole block
};

Zeros zeros_of(const StateFormat& format) {
  const size_t unit = format.unit_elements();
  const std::vector<float> zeros(unit, 0.0f);
  std::vector<uint8_t> codes(format.code_bytes(unit));
  std::vector<float> scales(format.scale_count(unit));
  codec(format.format)
      .encode(zeros.data(), 0, unit, unit, {}, 0,
              {codes.data(), scales.data(), format.block_elements});
  return {codes[0], scales[0]};
}

bool has_code_that_never_occurs(const StoredState& stored, const FormatInfo& info,
                                size_t elements) {
  if (info.is_code == nullptr) return false;
  if (info.code_bits == 8) return !std::ranges::all_of(stored.codes, info.is_code);
  for (size_t i = 0; i < elements; ++i) {
    const bool is_low = (i % 2 == 0) == (info.even_code_bits == 0x0F);
    const uint8_t byte = stored.codes[i / 2];
    if (!info.is_code(is_low ? byte & 0x0F : byte >> 4)) return true;
  }
  return false;
}

}  // namespace

size_t stored_scales(const StateFormat& format, size_t elements) {
  const size_t block = format.block_elements;
  return block == 0 ? 0 : (elements + block - 1) / block;
}

std::string flaw_of(const StoredState& stored, const StateFormat& format, size_t elements) {
  const FormatInfo& info = format_info(format.format);
  const size_t bytes = info.stored_bytes(elements);
  if (stored.codes.size() != bytes) {
    return "it has " + std::to_string(stored.codes.size()) + " bytes of codes, " +
           std::to_string(elements) + " elements have " + std::to_string(bytes);
  }
  const size_t scales = stored_scales(format, elements);
  if (stored.scales.size() != scales) {
    return "it has " + std::to_string(stored.scales.size()) + " scales, " +
           std::to_string(elements) + " elements in blocks of " +
           std::to_string(format.block_elements) + " have " + std::to_string(scales);
  }
  for (size_t i = 0; i < scales; ++i) {
    if (std::isfinite(stored.scales[i]) && stored.scales[i] >= 0) continue;
    return "scale " + std::to_string(i) + " is " + std::to_string(stored.scales[i]) +
           ", not a finite number of at least 0";
  }
  if (has_code_that_never_occurs(stored, info, elements)) {
    return "it holds a code that the format " + std::string(info.name) + " does not have";
  }
  return {};
}

void restore_state(const StoredState& stored, const StateFormat& format, size_t elements,
                   const StateArray& array) {
  const FormatInfo& info = format_info(format.format);
  auto* codes = static_cast<uint8_t*>(array.codes);
  const Zeros zeros = zeros_of(format);
  std::ranges::copy(stored.codes, codes);
  std::fill(codes + stored.codes.size(), codes + format.code_bytes(elements), zeros.codes);
  if (elements * info.code_bits % 8 != 0) {
    uint8_t& half_used = codes[stored.codes.size() - 1];
    half_used = static_cast<uint8_t>((half_used & info.even_code_bits) |
                                     (zeros.codes & ~info.even_code_bits));
  }
  std::ranges::copy(stored.scales, array.scales);
  std::fill(array.scales + stored.scales.size(), array.scales + format.scale_count(elements),
            zeros.scale);
}

void decode_state(const StateArray& array, const StateFormat& format, size_t elements, float* out) {
  const Codec codec = outboard::codec(format.format);
  const size_t unit = format.unit_elements();
  const size_t whole = elements / unit * unit;
  if (whole > 0) codec.decode(array, 0, whole, out);
  if (whole == elements) return;
  std::vector<float> last(unit);
  codec.decode(array, whole, unit, last.data());
  std::copy_n(last.data(), elements - whole, out + whole);
}

void encode_state(const float* in, const StateFormat& format, size_t elements,
                  const RandomContext& random, const StateArray& array) {
  const Codec codec = outboard::codec(format.format);
  const size_t unit = format.unit_elements();
  const size_t whole = elements / unit * unit;
  if (whole > 0) codec.encode(in, 0, whole, elements, random, 0, array);
  if (whole == elements) return;
  std::vector<float> last(unit, 0.0f);
  std::copy_n(in + whole, elements - whole, last.data());
  codec.encode(last.data(), whole, unit, elements, random, 0, array);
}

}  // namespace outboard
