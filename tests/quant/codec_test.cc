// Codecs of every format on every target, against the format's scalar definition.
#include "quant/codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "outboard/error.h"
#include "support/catalogue.h"
#include "support/guarded_buffer.h"
#include "support/numbers.h"
#include "support/reference_codec.h"
#include "support/targets.h"

namespace outboard {
namespace {

using testing::CodecArray;
using testing::for_each_target;
using testing::GuardedBuffer;
using testing::Numbers;
using testing::reference_decode;
using testing::reference_encode;
using testing::same_bits;

constexpr RandomContext kRandom = {.key = {11, 22}, .step = 9, .stream = 2};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class FormatType>
class CodecTest : public ::testing::Test {
 protected:
  static Format format() { return format_named(FormatType::kName).format; }

  /// The format with every block length that it allows.
  static std::vector<StateFormat> all_lengths() {
    std::vector<StateFormat> formats;
    for (const uint32_t block : format_info(format()).block_sizes) {
      formats.push_back(state_format(format(), block));
    }
    if (formats.empty()) formats.push_back(state_format(format()));
    return formats;
  }

  /// Awkward values of the sign that the format takes.
  static std::vector<float> values(uint64_t seed, size_t count) {
    std::vector<float> result = Numbers(seed).many(count, &Numbers::wild);
    if (!FormatType::kIsSigned) {
      for (float& value : result) value = std::fabs(value);
    }
    return result;
  }

  static CodecArray expected(StateFormat format, const std::vector<float>& values, size_t elements,
                             uint64_t offset = 0) {
    CodecArray array(format, elements);
    reference_encode<FormatType>(values, elements, kRandom, offset, array.view());
    return array;
  }

  static CodecArray actual(StateFormat format, const std::vector<float>& values, size_t elements,
                           uint64_t offset = 0) {
    CodecArray array(format, elements);
    codec(format.format)
        .encode(values.data(), 0, values.size(), elements, kRandom, offset, array.view());
    return array;
  }
};
TYPED_TEST_SUITE(CodecTest, testing::AllFormats, testing::CatalogueNames);

TYPED_TEST(CodecTest, EncodesAsTheScalarDefinitionOnEveryTarget) {
  for (const StateFormat format : this->all_lengths()) {
    const size_t count = 4 * format.unit_elements();
    const std::vector<float> values = this->values(1, count);
    for (const uint64_t offset : {uint64_t{0}, uint64_t{3}, uint64_t{1} << 35}) {
      const CodecArray expected = this->expected(format, values, count, offset);
      for_each_target([&] {
        GuardedBuffer codes(expected.codes.size());
        GuardedBuffer scales(expected.scales.size() * sizeof(float));
        GuardedBuffer in(values, 1);
        codec(format.format)
            .encode(in.as<float>(), 0, count, count, kRandom, offset,
                    {codes.as<void>(), scales.as<float>(), format.block_elements});
        EXPECT_EQ(expected.codes, codes.template values<uint8_t>()) << format.block_elements;
        EXPECT_TRUE(same_bits(expected.scales, scales.template values<float>()));
        EXPECT_TRUE(codes.is_intact() && scales.is_intact());
      });
    }
  }
}

TYPED_TEST(CodecTest, DecodesAsTheScalarDefinitionOnEveryTarget) {
  for (const StateFormat format : this->all_lengths()) {
    const size_t count = 4 * format.unit_elements();
    CodecArray stored = this->expected(format, this->values(2, count), count);
    const std::vector<float> expected = reference_decode<TypeParam>(stored.view(), count);
    for_each_target([&] {
      GuardedBuffer out(count * sizeof(float), sizeof(float));
      codec(format.format).decode(stored.view(), 0, count, out.as<float>());
      EXPECT_TRUE(same_bits(expected, out.values<float>())) << format.block_elements;
      EXPECT_TRUE(out.is_intact());
    });
  }
}

TYPED_TEST(CodecTest, EveryPatternInMemoryDecodesAsTheScalarDefinition) {
  if constexpr (TypeParam::kBlockElements > 0) {
    const StateFormat format = state_format(this->format());
    const size_t count = 4 * format.unit_elements();
    CodecArray stored(format, count);
    Numbers numbers(3);
    for (uint8_t& byte : stored.codes) byte = static_cast<uint8_t>(numbers.bits());
    for (float& scale : stored.scales) scale = std::fabs(numbers.spread());
    const std::vector<float> expected = reference_decode<TypeParam>(stored.view(), count);
    for_each_target([&] {
      std::vector<float> out(count);
      codec(format.format).decode(stored.view(), 0, count, out.data());
      EXPECT_TRUE(same_bits(expected, out));
    });
  }
}

TYPED_TEST(CodecTest, EveryCodeSurvivesDecodeThenEncode) {
  if constexpr (TypeParam::kCodeBits == 16) {
    using Code = typename TypeParam::Code;
    std::vector<Code> all;
    for (uint32_t code = 0; code < 65536; ++code) {
      if (!std::isnan(TypeParam::decode(static_cast<Code>(code)))) {
        all.push_back(static_cast<Code>(code));
      }
    }
    all.resize(round_up(all.size(), kTileElements));
    for_each_target([&] {
      std::vector<float> values(all.size());
      std::vector<Code> again(all.size(), Code{1});
      const Codec codec_now = codec(this->format());
      codec_now.decode({all.data(), nullptr}, 0, all.size(), values.data());
      codec_now.encode(values.data(), 0, all.size(), all.size(), kRandom, 0,
                       {again.data(), nullptr});
      EXPECT_TRUE(same_bits(all, again));
    });
  }
}

TYPED_TEST(CodecTest, ZerosReadAsZerosAlsoFromFreshMemory) {
  const StateFormat format = state_format(this->format());
  const size_t count = format.unit_elements();
  CodecArray fresh(format, count);
  CodecArray stored = this->actual(format, std::vector<float>(count, 0.0f), count);
  // Only torchao's second moment of 4 bits has neither a zero nor, for zeros, a scale of zero.
  const float least = std::is_same_v<TypeParam, quant::Ao4Unsigned> ? 1e-12f / 16 : 0.0f;
  for (CodecArray* array : {&fresh, &stored}) {
    std::vector<float> values(count, 1.0f);
    codec(format.format).decode(array->view(), 0, count, values.data());
    const float zero = array == &stored ? least : 0.0f;
    for (const float value : values) ASSERT_EQ(exact::bits(value), exact::bits(zero));
  }
}

TYPED_TEST(CodecTest, ABlockWithAnInfinityOrNaNReadsAsNaN) {
  if constexpr (TypeParam::kBlockElements > 0) {
    const StateFormat format = state_format(this->format());
    const size_t count = 4 * format.unit_elements();
    for (const float bad : {kInfinity, std::nanf("")}) {
      std::vector<float> values(count, 1.0f);
      values[format.block_elements + 3] = bad;
      for_each_target([&] {
        CodecArray array = this->actual(format, values, count);
        EXPECT_TRUE(array == this->expected(format, values, count));
        std::vector<float> read(count);
        codec(format.format).decode(array.view(), 0, count, read.data());
        for (size_t i = 0; i < count; ++i) {
          ASSERT_EQ(std::isnan(read[i]), i / format.block_elements == 1) << i;
        }
      });
    }
  }
}

TYPED_TEST(CodecTest, WhatLiesBeyondTheArrayIsStoredAsZero) {
  for (const StateFormat format : this->all_lengths()) {
    const size_t unit = format.unit_elements();
    const std::vector<float> values(unit, 1.0f);
    for_each_target([&] {
      for (const size_t elements : {size_t{1}, unit / 2 + 1, unit - 1, unit}) {
        CodecArray array = this->actual(format, values, elements);
        EXPECT_TRUE(array == this->expected(format, values, elements)) << elements;
        const std::vector<float> read = reference_decode<TypeParam>(array.view(), unit);
        for (size_t i = 0; i < elements; ++i) ASSERT_NEAR(read[i], 1.0f, 1e-6f) << i;
      }
    });
  }
}

TYPED_TEST(CodecTest, PiecesGiveTheSameCodesAsTheWhole) {
  for (const StateFormat format : this->all_lengths()) {
    const size_t unit = format.unit_elements();
    const std::vector<float> values = this->values(3, 4 * unit);
    const CodecArray whole = this->actual(format, values, values.size());
    CodecArray pieces(format, values.size());
    for (size_t first = 0; first < values.size(); first += unit) {
      codec(format.format)
          .encode(values.data() + first, first, unit, values.size(), kRandom, 0, pieces.view());
    }
    EXPECT_TRUE(whole == pieces);
  }
}

/// Values rise through a block: codes must, too.
TYPED_TEST(CodecTest, OrderIsKept) {
  if constexpr (TypeParam::kBlockElements > 0 && !TypeParam::kIsStochastic) {
    const StateFormat format = state_format(this->format());
    const size_t block = format.block_elements;
    const size_t count = 256 * format.unit_elements();
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) {  // every block: its maximum first, then a rising window
      const double at = static_cast<double>(i) / static_cast<double>(count);
      const double value = TypeParam::kIsSigned ? 2 * at - 1 : at;
      values[i] = i % block == 0 ? 1.0f : static_cast<float>(value * std::fabs(value));
    }
    CodecArray array = this->actual(format, values, count);
    const std::vector<float> read = reference_decode<TypeParam>(array.view(), count);
    float last = -kInfinity;
    for (size_t i = 0; i < count; ++i) {
      if (i % block == 0) continue;
      ASSERT_GE(read[i], last) << i;
      last = read[i];
    }
  }
}

TEST(FormatTable, NamesFindTheirFormats) {
  EXPECT_EQ(format_named("bf16_stochastic").format, Format::kBF16Stochastic);
  EXPECT_EQ(state_formats_named("fp32").unsigned_state.format, Format::kF32);
  EXPECT_EQ(state_formats_named("bf16").signed_state.format, Format::kBF16);
  EXPECT_EQ(state_formats_named("bf16").unsigned_state.format, Format::kBF16Stochastic);
  EXPECT_EQ(state_formats_named("8bit").unsigned_state, state_format(Format::kRoot8, 128));
}

TEST(FormatTable, ASlashTakesTheSignedFormatOfOneAndTheUnsignedOneOfTheOther) {
  const StateFormats mixed = state_formats_named("8bit/bf16", 64);
  EXPECT_EQ(mixed.signed_state, state_format(Format::kSym8, 64));
  EXPECT_EQ(mixed.unsigned_state, state_format(Format::kBF16Stochastic));
  EXPECT_EQ(state_formats_named("f32/root8").unsigned_state, state_format(Format::kRoot8));
}

TEST(FormatTable, UnknownNamesAreRefusedWithTheKnownOnes) {
  for (const char* name : {"fp7", "", "8bit/fp7", "8bit/", "/8bit", "8bit/8bit/8bit"}) {
    try {
      static_cast<void>(state_formats_named(name));
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      EXPECT_NE(std::string(error.what()).find("fp32, bf16, 8bit"), std::string::npos);
    }
  }
  EXPECT_THROW(static_cast<void>(format_named("")), Error);
}

TEST(FormatTable, FormatsWithoutASignAreRefusedForSignedState) {
  for (const char* name : {"root8", "root8/root8", "e4m3_root", "dynamic8_unsigned/8bit"}) {
    try {
      static_cast<void>(state_formats_named(name));
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      EXPECT_NE(std::string(error.what()).find("no negative values"), std::string::npos);
    }
  }
  EXPECT_EQ(state_formats_named("8bit/root8s").unsigned_state.format, Format::kRoot8Stochastic);
  EXPECT_EQ(state_formats_named("fp32/sym8").unsigned_state.format, Format::kSym8);
}

TEST(FormatTable, BlockLengthsThatAFormatLacksAreRefused) {
  EXPECT_THROW(static_cast<void>(state_format(Format::kSym8, 100)), Error);
  EXPECT_THROW(static_cast<void>(state_format(Format::kF32, 64)), Error);
  EXPECT_THROW(static_cast<void>(state_formats_named("8bit", 96)), Error);
}

TEST(FormatTable, ArraysArePaddedToWholeTilesAndBlocks) {
  EXPECT_EQ(state_format(Format::kF32).code_bytes(1), 1024u);
  EXPECT_EQ(state_format(Format::kBF16).code_bytes(257), 1024u);
  EXPECT_EQ(state_format(Format::kBF16).scale_count(257), 0u);
  EXPECT_EQ(state_format(Format::kSym8).code_bytes(257), 512u);
  EXPECT_EQ(state_format(Format::kSym8).scale_count(257), 4u);
}

}  // namespace
}  // namespace outboard
