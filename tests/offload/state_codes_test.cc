// Stored states: what is kept of an array, how its padding comes back, and what is refused.
#include "offload/state_codes.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <vector>

namespace outboard {
namespace {

struct Array {
  Array(const StateFormat& format, size_t elements, uint8_t fill)
      : codes(format.code_bytes(elements), fill),
        scales(format.scale_count(elements), static_cast<float>(fill)),
        view{codes.data(), scales.data(), format.block_elements} {}
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  StateArray view;
};

std::vector<StateFormat> block_formats() {
  std::vector<StateFormat> formats;
  for (size_t i = 0; i < kFormatCount; ++i) {
    const FormatInfo& info = format_info(static_cast<Format>(i));
    for (const uint32_t block : info.block_sizes)
      formats.push_back(state_format(info.format, block));
  }
  return formats;
}

std::string text(const StateFormat& format, size_t elements) {
  return std::string(format_info(format.format).name) + "/" +
         std::to_string(format.block_elements) + " of " + std::to_string(elements);
}

std::vector<float> values(size_t elements) {
  std::vector<float> result(elements);
  for (size_t i = 0; i < elements; ++i) {
    result[i] = 0.01f * static_cast<float>((i * 7919) % 1000 + 1);
  }
  return result;
}

std::vector<size_t> sizes(const StateFormat& format) {
  const size_t unit = format.unit_elements();
  return {1, 2, 63, unit - 1, unit, unit + 1, 2 * unit + 3};
}

StoredState stored(const Array& array, const StateFormat& format, size_t elements) {
  return {std::span(array.codes).first(format_info(format.format).stored_bytes(elements)),
          std::span(array.scales).first(stored_scales(format, elements))};
}

TEST(StateCodes, RestoringMakesTheWholeArrayAsTheEncoderMadeIt) {
  for (const StateFormat& format : block_formats()) {
    for (const size_t elements : sizes(format)) {
      Array encoded(format, elements, 0xEE);
      encode_state(values(elements).data(), format, elements, {}, encoded.view);
      const StoredState kept = stored(encoded, format, elements);
      ASSERT_EQ(flaw_of(kept, format, elements), "") << text(format, elements);
      std::vector<uint8_t> codes(kept.codes.begin(), kept.codes.end());
      if (elements * format_info(format.format).code_bits % 8 != 0) {
        codes.back() |= static_cast<uint8_t>(~format_info(format.format).even_code_bits);
      }
      Array restored(format, elements, 0x55);
      restore_state({codes, kept.scales}, format, elements, restored.view);
      EXPECT_EQ(restored.codes, encoded.codes) << text(format, elements);
      EXPECT_EQ(restored.scales, encoded.scales) << text(format, elements);
    }
  }
}

TEST(StateCodes, DecodingReadsEveryElementAndNoMore) {
  for (const StateFormat& format : block_formats()) {
    for (const size_t elements : sizes(format)) {
      const std::vector<float> in = values(elements);
      Array array(format, elements, 0);
      encode_state(in.data(), format, elements, {}, array.view);
      std::vector<float> out(elements + 1, -1.0f);
      decode_state(array.view, format, elements, out.data());
      EXPECT_EQ(out[elements], -1.0f) << text(format, elements);
      for (size_t i = 0; i < elements; ++i) {
        ASSERT_NEAR(out[i], in[i], 2.0f) << text(format, elements) << " at " << i;
      }
    }
  }
}

TEST(StateCodes, FlawsAreNamed) {
  const StateFormat format = state_format(Format::kSym8);
  constexpr size_t kElements = 300;
  Array array(format, kElements, 0);
  const StoredState good = stored(array, format, kElements);
  const auto flaw = [&](StoredState state) { return flaw_of(state, format, kElements); };
  EXPECT_EQ(flaw(good), "");
  EXPECT_THAT(flaw({good.codes.first(299), good.scales}), testing::HasSubstr("299 bytes"));
  EXPECT_THAT(flaw({good.codes, good.scales.first(2)}), testing::HasSubstr("2 scales"));
  for (const float bad : {-1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    array.scales[1] = bad;
    EXPECT_THAT(flaw(good), testing::HasSubstr("scale 1")) << bad;
  }
  array.scales[1] = 1.0f;
  array.codes[299] = 0x80;
  EXPECT_THAT(flaw(good), testing::HasSubstr("code"));
}

}  // namespace
}  // namespace outboard
