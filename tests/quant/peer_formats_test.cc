// The formats that store what bitsandbytes, torchao and lpmm store: codes, scales and values of
// those libraries, bit by bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "outboard/error.h"
#include "outboard_codecs.h"
#include "quant/codec.h"
#include "support/numbers.h"
#include "support/reference_codec.h"
#include "support/safetensors.h"
#include "support/targets.h"

namespace outboard {
namespace {

using testing::CodecArray;
using testing::for_each_target;
using testing::Numbers;
using testing::Safetensors;
using testing::same_bits;

const Safetensors& peers() {
  static const Safetensors file = Safetensors::golden("peer_formats");
  return file;
}

std::vector<float> floats(const std::string& name) { return peers().values<float>(name); }
std::vector<uint8_t> bytes(const std::string& name) { return peers().values<uint8_t>(name); }

/// Encodes `values`, which need not fill a unit.
CodecArray encode(StateFormat format, std::vector<float> values) {
  const size_t elements = values.size();
  CodecArray array(format, elements);
  values.resize(round_up(elements, format.unit_elements()));
  codec(format.format).encode(values.data(), 0, values.size(), elements, {}, 0, array.view());
  return array;
}

/// Decodes what a peer has stored.
std::vector<float> decode(StateFormat format, const std::vector<uint8_t>& codes,
                          const std::vector<float>& scales, size_t elements) {
  CodecArray array(format, elements);
  std::ranges::copy(codes, array.codes.begin());
  std::ranges::copy(scales, array.scales.begin());
  std::vector<float> values(round_up(elements, format.unit_elements()));
  codec(format.format).decode(array.view(), 0, values.size(), values.data());
  values.resize(elements);
  return values;
}

/// The array begins with these codes and scales.
void expect_begins(const CodecArray& array, const std::vector<uint8_t>& codes,
                   const std::vector<float>& scales) {
  for (size_t i = 0; i < codes.size(); ++i) ASSERT_EQ(array.codes[i], codes[i]) << i;
  for (size_t i = 0; i < scales.size(); ++i) ASSERT_TRUE(same_bits(scales[i], array.scales[i]));
}

float neighbour(float value, int32_t by) {
  int32_t rank = static_cast<int32_t>(exact::bits(value) & quant::kMagnitudeMask);
  rank = (std::signbit(value) ? -rank : rank) + by;
  const uint32_t magnitude = static_cast<uint32_t>(rank < 0 ? -rank : rank);
  return exact::from_bits(rank < 0 ? magnitude | quant::kSignMask : magnitude);
}

/// Values around every threshold and spread over the whole range, each block with the value 1, and
/// the code of each by counting thresholds.
template <class FormatType>
void expect_codes_by_search(const std::vector<float>& thresholds, bool sign_rule) {
  std::vector<float> values;
  for (const float threshold : thresholds) {
    for (int32_t by = -3; by <= 3; ++by) values.push_back(neighbour(threshold, by));
  }
  Numbers numbers(7);
  while (values.size() < 40960) {
    const float value = std::exp2(-24.0f * numbers.uniform()) * numbers.uniform();
    values.push_back(FormatType::kIsSigned && (numbers.bits() & 1) != 0 ? -value : value);
  }
  values.insert(values.end(), {0.0f, -0.0f, 1e-45f, -1e-45f, -1.0f});
  if (!FormatType::kIsSigned) {
    for (float& value : values) value = std::fabs(value);
  }
  const StateFormat format = state_format(format_named(FormatType::kName).format);
  values.resize(round_up(values.size(), format.unit_elements()));
  for (size_t i = 0; i < values.size(); i += format.block_elements) values[i] = 1.0f;
  for_each_target([&] {
    const CodecArray array = encode(format, values);
    for (size_t i = 0; i < values.size(); ++i) {
      long expected = std::ranges::count_if(thresholds, [&](float t) { return t <= values[i]; });
      if (sign_rule && std::signbit(values[i]) && expected == 127) expected = 126;
      const auto code = testing::reference_code<FormatType>(array.codes.data(), i);
      ASSERT_EQ(code, expected) << i << ": " << values[i];
    }
  });
}

TEST(PeerFormats, NamesStandForPairs) {
  const StateFormats older = state_formats_named("dynamic8-2048");
  EXPECT_EQ(older.signed_state, state_format(Format::kDynamic8Signed, 2048));
  EXPECT_EQ(older.unsigned_state, state_format(Format::kDynamic8Unsigned, 2048));
  EXPECT_EQ(state_formats_named("dynamic8").unsigned_state.block_elements, 256u);
  EXPECT_EQ(state_formats_named("dynamic8_signed").unsigned_state.format, Format::kDynamic8Signed);
  EXPECT_EQ(state_formats_named("ao4").unsigned_state.format, Format::kAo4Unsigned);
  EXPECT_EQ(state_formats_named("ao8/lpmm4").unsigned_state.format, Format::kLpmm4Unsigned);
  EXPECT_EQ(state_formats_named("aofp8").signed_state.format, Format::kAoFP8);
  EXPECT_THROW(static_cast<void>(state_formats_named("ao8", 64)), Error);
}

TEST(PeerFormats, Dynamic8HasTheMapsOfBitsandbytes) {
  for (const bool is_signed : {true, false}) {
    const auto map = floats(is_signed ? "dynamic8/map_s" : "dynamic8/map_u");
    for (uint32_t code = 0; code < 256; ++code) {
      const float level =
          is_signed ? quant::dynamic_level<true>(code) : quant::dynamic_level<false>(code);
      EXPECT_TRUE(same_bits(map[code], level)) << code;
    }
  }
}

TEST(PeerFormats, Dynamic8DecodesWhatBitsandbytesStored) {
  for (const auto& [name, length] : {std::pair{"s256", 256}, {"u256", 256}, {"s2048", 2048}}) {
    const Format format = *name == 's' ? Format::kDynamic8Signed : Format::kDynamic8Unsigned;
    const std::string key = std::string("dynamic8/") + name;
    std::vector<float> expected = floats(key + "/decoded");
    for (float& value : expected) value += 0.0f;  // its zero blocks read as -0, ours as +0
    for_each_target([&, length = length] {
      EXPECT_TRUE(same_bits(expected, decode(state_format(format, length), bytes(key + "/codes"),
                                             floats(key + "/scales"), expected.size())));
    });
  }
}

TEST(PeerFormats, Dynamic8CodesAreThoseOfASearchAmongItsThresholds) {
  expect_codes_by_search<quant::Dynamic8Signed>(floats("dynamic8/thresholds_s"), true);
  expect_codes_by_search<quant::Dynamic8Unsigned>(floats("dynamic8/thresholds_u"), false);
}

TEST(PeerFormats, Dynamic8ZerosHaveTheCodesOfBitsandbytesAndScaleZero) {
  const std::vector<float> zeros(256, 0.0f);
  const CodecArray first = encode(state_format(Format::kDynamic8Signed), zeros);
  const CodecArray second = encode(state_format(Format::kDynamic8Unsigned), zeros);
  EXPECT_EQ(first.codes, std::vector<uint8_t>(256, 127));
  EXPECT_EQ(second.codes, std::vector<uint8_t>(256, 0));
  EXPECT_EQ(first.scales, std::vector<float>(1, 0.0f));
  EXPECT_EQ(second.scales, std::vector<float>(1, 0.0f));
}

TEST(PeerFormats, Dynamic8KeepsSubnormalBlocks) {
  std::vector<float> values(256, 1e-45f);
  values[1] = 4e-45f;
  for_each_target([&] {
    const CodecArray array = encode(state_format(Format::kDynamic8Unsigned), values);
    EXPECT_EQ(array.scales[0], 4e-45f);
    EXPECT_EQ(array.codes[1], 255);
    EXPECT_GT(array.codes[0], 0);
  });
}

/// A block that holds the value of every code and the one with the scale.
template <class FormatType>
void expect_codes_survive(float scale) {
  const StateFormat format = state_format(format_named(FormatType::kName).format);
  constexpr size_t kCodes = size_t{1} << FormatType::kCodeBits;
  std::vector<float> values;
  const typename FormatType::Decoder decoder(scale);
  for (size_t code = 0; code < kCodes; ++code) {
    values.push_back(decoder(static_cast<uint8_t>(code)));
  }
  const CodecArray array = encode(format, values);
  for (size_t code = 0; code < kCodes; ++code) {
    EXPECT_EQ(testing::reference_code<FormatType>(array.codes.data(), code), code) << scale;
  }
  EXPECT_TRUE(same_bits(scale, array.scales[0]));
}

TEST(PeerFormats, EveryCodeSurvivesWhereTheBlockHasItsTop) {
  for_each_target([] {
    for (const float scale : {1.0f, 0.7f, 3e-9f, 1.7e30f}) {
      expect_codes_survive<quant::Dynamic8Signed>(scale);
      expect_codes_survive<quant::Dynamic8Unsigned>(scale);
      expect_codes_survive<quant::Ao8Signed>(scale);
      expect_codes_survive<quant::Ao8Unsigned>(scale);
      expect_codes_survive<quant::Ao4Signed>(scale);
      expect_codes_survive<quant::Ao4Unsigned>(scale);
      expect_codes_survive<quant::Lpmm4Signed>(scale);
      expect_codes_survive<quant::Lpmm4Unsigned>(scale);
    }
  });
}

/// Moments of AdamW that begin as torchao's stored ones and take one gradient: what it stores next.
void expect_steps(const std::string& name, Format signed_format, Format unsigned_format) {
  const StateFormat first = state_format(signed_format);
  const StateFormat second = state_format(unsigned_format);
  std::vector<float> m(floats(name + "/gradient1").size());
  std::vector<float> v(m.size());
  for (const char* step : {"1", "2", "3"}) {
    const std::vector<float> g = floats(name + "/gradient" + step);
    for (size_t i = 0; i < g.size(); ++i) {
      m[i] = exact::lerp(m[i], g[i], static_cast<float>(1 - 0.9));
      v[i] = exact::lerp(v[i], exact::mul(g[i], g[i]), static_cast<float>(1 - 0.999));
    }
    const auto m_codes = bytes(name + "/m_codes" + step);
    const auto v_codes = bytes(name + "/v_codes" + step);
    const auto m_scales = floats(name + "/m_scales" + step);
    const auto v_scales = floats(name + "/v_scales" + step);
    expect_begins(encode(first, m), m_codes, m_scales);
    expect_begins(encode(second, v), v_codes, v_scales);
    m = decode(first, m_codes, m_scales, m.size());
    v = decode(second, v_codes, v_scales, v.size());
  }
}

TEST(PeerFormats, Ao8CodesAreThoseOfASearchAmongItsThresholds) {
  expect_codes_by_search<quant::Ao8Signed>(floats("ao8/thresholds_s"), false);
  expect_codes_by_search<quant::Ao8Unsigned>(floats("ao8/thresholds_u"), false);
}

TEST(PeerFormats, Ao8StoresThreeStepsOfAdamWAsTorchao) {
  for_each_target([] { expect_steps("ao8", Format::kAo8Signed, Format::kAo8Unsigned); });
}

TEST(PeerFormats, AoScalesHaveAFloor) {
  for (const Format format : {Format::kAo8Signed, Format::kAo4Unsigned}) {
    EXPECT_EQ(encode(state_format(format), std::vector<float>(256, 0.0f)).scales[0], 1e-12f);
    EXPECT_EQ(encode(state_format(format), std::vector<float>(256, 1e-20f)).scales[0], 1e-12f);
  }
}

/// The midpoints k + 1/2 sixteenths.
std::vector<float> uniform_thresholds(int32_t above) {
  std::vector<float> thresholds;
  for (int k = 1; k < 16; ++k) {
    thresholds.push_back(neighbour((static_cast<float>(k) + 0.5f) / 16, above));
  }
  return thresholds;
}

TEST(PeerFormats, Ao4CodesAreThoseOfASearchAmongItsThresholds) {
  expect_codes_by_search<quant::Ao4Signed>(floats("ao4/thresholds_s"), false);
  expect_codes_by_search<quant::Ao4Unsigned>(uniform_thresholds(0), false);
}

TEST(PeerFormats, Ao4StoresThreeStepsOfAdamWAsTorchao) {
  for_each_target([] { expect_steps("ao4", Format::kAo4Signed, Format::kAo4Unsigned); });
}

TEST(PeerFormats, AoFP8StoresThreeStepsOfAdamWAsTorchao) {
  for_each_target([] { expect_steps("aofp8", Format::kAoFP8, Format::kAoFP8); });
}

TEST(PeerFormats, Lpmm4StoresGroupsAsLpmm) {
  for (const auto& [name, length] :
       {std::pair{"s128", 128}, {"u128", 128}, {"s64", 64}, {"s256", 256}}) {
    const Format format = *name == 's' ? Format::kLpmm4Signed : Format::kLpmm4Unsigned;
    const std::string key = std::string("lpmm4/") + name;
    const auto codes = bytes(key + "/codes");
    const auto scales = floats(key + "/scales");
    const auto decoded = floats(key + "/decoded");
    for_each_target([&, length = length] {
      const StateFormat with_length = state_format(format, length);
      expect_begins(encode(with_length, floats(key + "/values")), codes, scales);
      EXPECT_TRUE(same_bits(decoded, decode(with_length, codes, scales, decoded.size())));
    });
  }
}

template <class FormatType>
void expect_tie_codes(const std::string& key) {
  const std::vector<float> values = floats(key + "/values");
  const std::vector<uint8_t> codes = bytes(key + "/codes");
  const typename FormatType::Encoder encoder(1.0f);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(encoder(values[i], 0), testing::reference_code<FormatType>(codes.data(), i))
        << values[i];
  }
}

TEST(PeerFormats, Lpmm4SettlesTiesAsLpmm) {
  expect_tie_codes<quant::Lpmm4Signed>("lpmm4/ties_s");
  expect_tie_codes<quant::Lpmm4Unsigned>("lpmm4/ties_u");
  expect_codes_by_search<quant::Lpmm4Unsigned>(uniform_thresholds(1), false);
}

}  // namespace
}  // namespace outboard
