// The counter-based generator against published answers and golden values.
#include "quant/random.h"

#include <gtest/gtest.h>

#include "support/safetensors.h"

namespace outboard {
namespace {

using testing::Safetensors;

PhiloxBlock block(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return {{a, b, c, d}}; }

void expect_block(const PhiloxBlock& expected, const PhiloxBlock& actual) {
  for (int i = 0; i < 4; ++i) EXPECT_EQ(expected.word[i], actual.word[i]) << "word " << i;
}

TEST(Random, PhiloxGivesThePublishedAnswers) {
  expect_block(block(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8),
               philox(block(0, 0, 0, 0), {0, 0}));
  const uint32_t ones = 0xFFFFFFFFu;
  expect_block(block(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd),
               philox(block(ones, ones, ones, ones), {ones, ones}));
  expect_block(
      block(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1),
      philox(block(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), {0xa4093822, 0x299f31d0}));
}

TEST(Random, Splitmix64GivesTheKnownAnswer) { EXPECT_EQ(splitmix64(0), 0xE220A8397B1DCDAFull); }

TEST(Random, FirstHalfwordsOfSeed1Parameter2Step3) {
  const uint32_t expected[] = {0x4390, 0x710c, 0xa88e, 0x261a, 0xa7f0, 0x40a4, 0xdd1f, 0xaef6};
  const RandomKey key = random_key(1, 2);
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(random16(key, 3, 0, i), expected[i]) << i;
}

TEST(Random, EqualsGoldenBlocksAndHalfwords) {
  const Safetensors golden = Safetensors::golden("integer_recipes");
  const auto counters = golden.values<uint32_t>("philox_ctr");
  const auto outputs = golden.values<uint32_t>("philox_out");
  for (size_t i = 0; i < counters.size(); i += 4) {
    expect_block(
        block(outputs[i], outputs[i + 1], outputs[i + 2], outputs[i + 3]),
        philox(block(counters[i], counters[i + 1], counters[i + 2], counters[i + 3]), {20261, 7}));
  }
  const auto halfwords = golden.values<uint16_t>("rand16");
  const RandomKey key = random_key(20261, 3);
  for (size_t i = 0; i < halfwords.size(); ++i) {
    ASSERT_EQ(random16(key, 17, 0, 5 + i), halfwords[i]) << i;
  }
}

TEST(Random, ElementsBeyond32BitsUseTheHighCounterWord) {
  const RandomKey key = random_key(1, 2);
  const uint64_t far = uint64_t{1} << 35;
  int equal = 0;
  for (uint64_t i = 0; i < 64; ++i) {
    equal += random16(key, 1, 0, i) == random16(key, 1, 0, far + i) ? 1 : 0;
  }
  EXPECT_LE(equal, 2);
}

}  // namespace
}  // namespace outboard
