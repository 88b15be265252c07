// Block codecs of every format on every target, against the format's scalar definition.
#include "quant/codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "outboard/error.h"
#include "support/catalogue.h"
#include "support/guarded_buffer.h"
#include "support/numbers.h"
#include "support/targets.h"

namespace outboard {
namespace {

using testing::for_each_target;
using testing::GuardedBuffer;
using testing::Numbers;
using testing::same_bits;

constexpr RandomContext kRandom = {.key = {11, 22}, .step = 9, .stream = 2};

template <class FormatType>
class CodecTest : public ::testing::Test {
 protected:
  using Code = typename FormatType::Code;

  static const FormatInfo& info() { return format_named(FormatType::kName); }

  static std::vector<Code> scalar_codes(const std::vector<float>& values, size_t first,
                                        uint64_t offset) {
    std::vector<Code> codes(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const uint32_t draw = random16(kRandom.key, kRandom.step, kRandom.stream, offset + first + i);
      codes[i] = FormatType::encode(values[i], draw);
    }
    return codes;
  }
};
TYPED_TEST_SUITE(CodecTest, testing::AllFormats, testing::CatalogueNames);

TYPED_TEST(CodecTest, EncodesAsTheScalarDefinitionOnEveryTarget) {
  using Code = typename TypeParam::Code;
  const size_t count = 4 * this->info().unit_elements();
  std::vector<float> values = Numbers(1).many(count, &Numbers::wild);
  values[3] = std::numeric_limits<float>::infinity();
  values[5] = std::numeric_limits<float>::max();
  for (const uint64_t offset : {uint64_t{0}, uint64_t{3}, uint64_t{1} << 35}) {
    const std::vector<Code> expected = this->scalar_codes(values, 0, offset);
    for_each_target([&] {
      GuardedBuffer codes(this->info().code_bytes(count), sizeof(Code));
      GuardedBuffer in(values, 1);
      codec(this->info().format)
          .encode(in.as<float>(), 0, count, count, kRandom, offset, {codes.as<void>(), nullptr});
      EXPECT_TRUE(same_bits(expected, codes.values<Code>())) << "offset " << offset;
      EXPECT_TRUE(codes.is_intact());
    });
  }
}

TYPED_TEST(CodecTest, DecodesAsTheScalarDefinitionOnEveryTarget) {
  using Code = typename TypeParam::Code;
  const size_t count = 4 * this->info().unit_elements();
  const std::vector<Code> stored = this->scalar_codes(Numbers(2).many(count, &Numbers::wild), 0, 0);
  std::vector<float> expected;
  for (const Code code : stored) expected.push_back(TypeParam::decode(code));
  for_each_target([&] {
    GuardedBuffer codes(stored, 1);
    GuardedBuffer out(count * sizeof(float), sizeof(float));
    codec(this->info().format).decode({codes.as<void>(), nullptr}, 0, count, out.as<float>());
    EXPECT_TRUE(same_bits(expected, out.values<float>()));
    EXPECT_TRUE(out.is_intact());
  });
}

TYPED_TEST(CodecTest, EveryCodeSurvivesDecodeThenEncode) {
  using Code = typename TypeParam::Code;
  if constexpr (sizeof(Code) == 2) {
    std::vector<Code> all;
    for (uint32_t code = 0; code < 65536; ++code) {
      if (!std::isnan(TypeParam::decode(static_cast<Code>(code)))) {
        all.push_back(static_cast<Code>(code));
      }
    }
    all.resize(round_up(all.size(), this->info().unit_elements()));
    for_each_target([&] {
      std::vector<float> values(all.size());
      std::vector<Code> again(all.size(), Code{1});
      const Codec codec_now = codec(this->info().format);
      codec_now.decode({all.data(), nullptr}, 0, all.size(), values.data());
      codec_now.encode(values.data(), 0, all.size(), all.size(), kRandom, 0,
                       {again.data(), nullptr});
      EXPECT_TRUE(same_bits(all, again));
    });
  }
}

TYPED_TEST(CodecTest, WhatLiesBeyondTheArrayIsStoredAsZero) {
  using Code = typename TypeParam::Code;
  const size_t unit = this->info().unit_elements();
  const std::vector<float> values(unit, 1.0f);
  for_each_target([&] {
    for (const size_t elements : {size_t{1}, unit - 1, unit}) {
      std::vector<Code> codes(unit, Code{7});
      codec(this->info().format)
          .encode(values.data(), 0, unit, elements, kRandom, 0, {codes.data(), nullptr});
      for (size_t i = 0; i < unit; ++i) {
        ASSERT_EQ(TypeParam::decode(codes[i]), i < elements ? 1.0f : 0.0f) << i;
      }
    }
  });
}

TYPED_TEST(CodecTest, PiecesGiveTheSameCodesAsTheWhole) {
  using Code = typename TypeParam::Code;
  const size_t unit = this->info().unit_elements();
  const std::vector<float> values = Numbers(3).many(4 * unit, &Numbers::wild);
  std::vector<Code> whole(values.size());
  std::vector<Code> pieces(values.size());
  const Codec codec_now = codec(this->info().format);
  codec_now.encode(values.data(), 0, 4 * unit, 4 * unit, kRandom, 0, {whole.data(), nullptr});
  for (size_t first = 0; first < values.size(); first += unit) {
    codec_now.encode(values.data() + first, first, unit, 4 * unit, kRandom, 0,
                     {pieces.data(), nullptr});
  }
  EXPECT_TRUE(same_bits(whole, pieces));
}

TEST(FormatTable, NamesFindTheirFormats) {
  EXPECT_EQ(format_named("bf16_stochastic").format, Format::kBF16Stochastic);
  EXPECT_EQ(state_formats_named("fp32").unsigned_state, Format::kF32);
  EXPECT_EQ(state_formats_named("bf16").signed_state, Format::kBF16);
  EXPECT_EQ(state_formats_named("bf16").unsigned_state, Format::kBF16Stochastic);
}

TEST(FormatTable, UnknownNamesAreRefusedWithTheKnownOnes) {
  try {
    static_cast<void>(state_formats_named("fp7"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    EXPECT_NE(std::string(error.what()).find("'fp7'"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("fp32, bf16"), std::string::npos);
  }
  EXPECT_THROW(static_cast<void>(format_named("")), Error);
}

TEST(FormatTable, ArraysArePaddedToWholeTiles) {
  EXPECT_EQ(format_named("f32").code_bytes(1), 1024u);
  EXPECT_EQ(format_named("bf16").code_bytes(257), 1024u);
  EXPECT_EQ(format_named("bf16").scale_count(257), 0u);
}

}  // namespace
}  // namespace outboard
