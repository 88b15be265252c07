// Cutting parameters into chunks.
#include "offload/chunk_plan.h"

#include <gtest/gtest.h>

#include <vector>

#include "outboard/types.h"
#include "quant/random.h"

namespace outboard {
namespace {

constexpr size_t kChunk = kNormSegmentElements;

TEST(ChunkPlan, ChunkLengthsAreWholeSegments) {
  EXPECT_EQ(whole_chunk_elements(0), kChunk);
  EXPECT_EQ(whole_chunk_elements(1), kChunk);
  EXPECT_EQ(whole_chunk_elements(kChunk), kChunk);
  EXPECT_EQ(whole_chunk_elements(kChunk + 1), 2 * kChunk);
}

TEST(ChunkPlan, NothingGivesNoChunk) {
  EXPECT_TRUE(plan_chunks({}, kChunk).empty());
  EXPECT_TRUE(plan_chunks(std::vector<PlannedParameter>{{0, 0}}, kChunk).empty());
}

TEST(ChunkPlan, LastParameterComesFirst) {
  const auto chunks = plan_chunks(std::vector<PlannedParameter>{{3, kChunk}, {7, kChunk}}, kChunk);
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].pieces[0].parameter, 7u);
  EXPECT_EQ(chunks[1].pieces[0].parameter, 3u);
}

TEST(ChunkPlan, SmallParametersShareAChunk) {
  const auto chunks = plan_chunks(std::vector<PlannedParameter>{{0, 10}, {1, 20}, {2, 30}}, kChunk);
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].pieces.size(), 3u);
  EXPECT_EQ(chunks[0].elements, 60u);
}

// Every element in exactly one piece, pieces at multiples of the chunk, chunks bounded.
TEST(ChunkPlan, CoversEveryElementOnce) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<PlannedParameter> parameters;
    for (size_t p = 0; p < 20; ++p) {
      parameters.push_back({p, splitmix64(seed * 100 + p) % (3 * kChunk)});
    }
    std::vector<size_t> next(parameters.size(), 0);
    for (const Chunk& chunk : plan_chunks(parameters, kChunk)) {
      size_t elements = 0;
      for (const Piece& piece : chunk.pieces) {
        EXPECT_EQ(piece.first, next[piece.parameter]);
        EXPECT_EQ(piece.first % kChunk, 0u);
        EXPECT_LT(piece.first, piece.last);
        next[piece.parameter] = piece.last;
        elements += piece.last - piece.first;
      }
      EXPECT_EQ(elements, chunk.elements);
      EXPECT_LE(elements, kChunk);
    }
    for (size_t p = 0; p < parameters.size(); ++p) EXPECT_EQ(next[p], parameters[p].elements);
  }
}

}  // namespace
}  // namespace outboard
