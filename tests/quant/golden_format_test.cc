// The formats of this library against golden values from an implementation of their own, on every
// target: codes, scales and decoded values of random data, and codes at every threshold and the
// floats beside it.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "quant/codec.h"
#include "quant/e4m3.h"
#include "quant/nf4.h"
#include "support/numbers.h"
#include "support/reference_codec.h"
#include "support/safetensors.h"
#include "support/targets.h"

namespace outboard {
namespace {

using testing::CodecArray;
using testing::for_each_target;
using testing::Safetensors;
using testing::same_bits;

const RandomContext kRandom = {.key = random_key(20261, 4), .step = 9, .stream = 2};

const Safetensors& golden() {
  static const Safetensors file = Safetensors::golden("own_formats");
  return file;
}

CodecArray encode(const std::string& format, std::vector<float> values) {
  const size_t elements = values.size();
  CodecArray array(state_format(format_named(format).format), elements);
  values.resize(round_up(elements, array.format.unit_elements()));
  codec(array.format.format)
      .encode(values.data(), 0, values.size(), elements, kRandom, 0, array.view());
  return array;
}

/// Codes one by one, in the order of elements.
std::vector<uint16_t> codes_of(const CodecArray& array, size_t elements) {
  std::vector<uint16_t> codes(elements);
  const bool is_packed = format_info(array.format.format).code_bits == 4;
  for (size_t i = 0; i < elements; ++i) {
    codes[i] = is_packed ? (array.codes[i / 2] >> (i % 2 * 4)) & 15 : array.codes[i];
  }
  return codes;
}

void expect_codes_and_scales(const std::string& name, const CodecArray& array, size_t elements) {
  const std::vector<uint8_t> codes = golden().values<uint8_t>(name + "/codes");
  const std::vector<float> scales = golden().values<float>(name + "/scale");
  EXPECT_TRUE(
      same_bits(std::vector<uint16_t>(codes.begin(), codes.end()), codes_of(array, elements)));
  EXPECT_TRUE(same_bits(
      scales, std::vector<float>(array.scales.begin(), array.scales.begin() + scales.size())));
}

TEST(GoldenFormat, CodesScalesAndValuesAreReproducedOnEveryTarget) {
  for (const std::string name : {"sym8", "root8", "root8s", "nf4", "root4", "root4_nearest"}) {
    const bool is_signed = name == "sym8" || name == "nf4";
    const std::vector<float> values = golden().values<float>(is_signed ? "x" : "v");
    for_each_target([&] {
      SCOPED_TRACE(name);
      CodecArray array = encode(name, values);
      expect_codes_and_scales(name, array, values.size());
      std::vector<float> decoded(round_up(values.size(), array.format.unit_elements()));
      codec(array.format.format).decode(array.view(), 0, decoded.size(), decoded.data());
      decoded.resize(values.size());
      EXPECT_TRUE(same_bits(golden().values<float>(name + "/decoded"), decoded));
    });
  }
}

TEST(GoldenFormat, EveryThresholdSendsTheFloatsBesideItToTheRightCodes) {
  for (const auto& [name, format, values] :
       {std::tuple{"ties_sym8", "sym8", "x"}, std::tuple{"ties_root8", "root8", "v"}}) {
    const std::vector<float> ties = golden().values<float>(std::string(name) + "/" + values);
    for_each_target([&] { expect_codes_and_scales(name, encode(format, ties), ties.size()); });
  }
}

TEST(GoldenFormat, Nf4HasTheLevelsAndThresholdsOfTheBook) {
  const std::vector<float> levels = golden().values<float>("book/nf4");
  const std::vector<float> midpoints = golden().values<float>("book/nf4_thr");
  quant::Table16 sorted = {};
  for (int i = 0; i < 15; ++i) sorted.at[i] = std::nextafter(midpoints[i], 1.0f);  // ties go down
  const quant::Table16 tree = quant::search_tree(sorted);
  for (int i = 0; i < 16; ++i) EXPECT_TRUE(same_bits(levels[i], quant::NF4::levels().at[i]));
  for (int i = 0; i < 16; ++i) EXPECT_TRUE(same_bits(tree.at[i], quant::NF4::thresholds().at[i]));
}

TEST(GoldenFormat, E4m3CodesHaveTheValuesOfTheBook) {
  const std::vector<float> book = golden().values<float>("book/e4m3");
  for (int code = 0; code < 256; ++code) {
    const float value = quant::f32_from_e4m3(static_cast<uint8_t>(code));
    if (quant::E4M3::is_code(static_cast<uint8_t>(code))) {
      EXPECT_TRUE(same_bits(book[code], value)) << code;
    } else {
      EXPECT_TRUE(std::isnan(value)) << code;
    }
  }
}

}  // namespace
}  // namespace outboard
