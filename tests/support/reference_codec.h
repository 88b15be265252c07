// Codecs once more, element by element from the scalar definitions: what every SIMD and device
// codec must equal for whole arrays, padding included.
#ifndef OUTBOARD_TESTS_SUPPORT_REFERENCE_CODEC_H_
#define OUTBOARD_TESTS_SUPPORT_REFERENCE_CODEC_H_

#include <algorithm>
#include <cstring>
#include <vector>

#include "outboard_codecs.h"
#include "quant/codec.h"
#include "quant/random.h"

namespace outboard::testing {

/// Memory of one array of `elements` elements, zero-filled.
struct CodecArray {
  CodecArray(StateFormat state_format, size_t elements)
      : format(state_format),
        codes(state_format.code_bytes(elements)),
        scales(state_format.scale_count(elements)) {}

  [[nodiscard]] StateArray view() {
    return {codes.data(), scales.empty() ? nullptr : scales.data(), format.block_elements};
  }
  friend bool operator==(const CodecArray& a, const CodecArray& b) {
    return a.codes == b.codes && a.scales.size() == b.scales.size() &&
           (a.scales.empty() ||
            std::memcmp(a.scales.data(), b.scales.data(), a.scales.size() * sizeof(float)) == 0);
  }

  StateFormat format;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

/// Code `i` of a block format.
template <class Definition>
uint8_t reference_code(const void* codes, size_t i) {
  const auto* bytes = static_cast<const uint8_t*>(codes);
  if constexpr (Definition::kCodeBits == 4) {
    const bool is_high = (i % 2 == 1) == (Definition::kNibbleOrder == quant::NibbleOrder::kEvenLow);
    return is_high ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
  } else {
    return bytes[i];
  }
}

template <class Definition>
void set_reference_code(void* codes, size_t i, uint8_t code) {
  auto* bytes = static_cast<uint8_t*>(codes);
  if constexpr (Definition::kCodeBits == 4) {
    const bool is_high = (i % 2 == 1) == (Definition::kNibbleOrder == quant::NibbleOrder::kEvenLow);
    const int shift = is_high ? 4 : 0;
    bytes[i / 2] = static_cast<uint8_t>((bytes[i / 2] & (0xF0 >> shift)) | code << shift);
  } else {
    bytes[i] = code;
  }
}

/// The values of `count` elements.
template <class Definition>
std::vector<float> reference_decode(const StateArray& array, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    if constexpr (Definition::kBlockElements == 0) {
      values[i] = Definition::decode(static_cast<const typename Definition::Code*>(array.codes)[i]);
    } else {
      const typename Definition::Decoder decoder(array.scales[i / array.block_elements]);
      values[i] = decoder(reference_code<Definition>(array.codes, i));
    }
  }
  return values;
}

/// Encodes `values`, which are whole units; those from `elements` on count as zero.
template <class Definition>
void reference_encode(std::vector<float> values, size_t elements, const RandomContext& random,
                      uint64_t element_offset, const StateArray& array) {
  const auto draw = [&](size_t i) {
    return random16(random.key, random.step, random.stream, element_offset + i);
  };
  for (size_t i = elements; i < values.size(); ++i) values[i] = 0;
  if constexpr (Definition::kBlockElements == 0) {
    auto* codes = static_cast<typename Definition::Code*>(array.codes);
    for (size_t i = 0; i < values.size(); ++i) codes[i] = Definition::encode(values[i], draw(i));
  } else {
    const size_t block = array.block_elements;
    for (size_t first = 0; first < values.size(); first += block) {
      uint32_t largest = 0;
      for (size_t i = first; i < first + block; ++i) {
        largest = std::max(largest, exact::bits(values[i]) & quant::kMagnitudeMask);
      }
      const float scale = Definition::scale(exact::from_bits(largest));
      array.scales[first / block] = scale;
      const quant::BlockEncoder<Definition> encoder(scale);
      for (size_t i = first; i < first + block; ++i) {
        set_reference_code<Definition>(array.codes, i, encoder(values[i], draw(i)));
      }
    }
  }
}

/// The same for a format known at run time.
inline std::vector<float> reference_decode(Format format, const StateArray& array, size_t count) {
  switch (format) {
#define OUTBOARD_FORMAT(type, stem) \
  case Format::k##type:             \
    return reference_decode<quant::type>(array, count);
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
  }
  return {};
}

inline void reference_encode(Format format, const std::vector<float>& values, size_t elements,
                             const RandomContext& random, uint64_t element_offset,
                             const StateArray& array) {
  switch (format) {
#define OUTBOARD_FORMAT(type, stem)                                                 \
  case Format::k##type:                                                             \
    reference_encode<quant::type>(values, elements, random, element_offset, array); \
    return;
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
  }
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_REFERENCE_CODEC_H_
