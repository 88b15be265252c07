// Codes of 4 bits by tables: a level for each code, and a search among the 15 thresholds between
// them. The tables belong to the formats; the ways to look something up without memory are here.
#ifndef OUTBOARD_QUANT_TABLE16_H_
#define OUTBOARD_QUANT_TABLE16_H_

#include <cstdint>

#include "outboard/hd.h"

namespace outboard::quant {

/// Sixteen numbers.
struct Table16 {
  float at[16];
};

/// The 15 rising thresholds that begin `sorted` as a search tree: entry 1 is the root, those below
/// entry k are 2k and 2k + 1.
OUTBOARD_HD constexpr Table16 search_tree(const Table16& sorted) {
  Table16 tree = {};
  int next = 1;
  for (int step = 16; step > 1; step /= 2) {
    for (int i = step / 2 - 1; i < 15; i += step) tree.at[next++] = sorted.at[i];
  }
  return tree;
}

/// A table to look things up in. On the device a lane holds one entry (and its neighbour 16 lanes
/// on the same), so all lanes of a warp look up together; an index counts modulo 16.
struct Lookup16 {
#if defined(__CUDA_ARCH__)
  float mine;
  OUTBOARD_HD explicit Lookup16(const Table16& table) : mine(table.at[threadIdx.x % 16]) {}
  OUTBOARD_HD float operator()(uint32_t index) const {
    return __shfl_sync(0xFFFFFFFFu, mine, static_cast<int>(index), 16);
  }
#else
  Table16 entries;
  OUTBOARD_HD explicit Lookup16(const Table16& table) : entries(table) {}
  OUTBOARD_HD float operator()(uint32_t index) const { return entries.at[index % 16]; }
#endif
};

/// How many of the thresholds in `tree` are at most `value`.
OUTBOARD_HD uint32_t count_thresholds(const Lookup16& tree, float value) {
  uint32_t node = 1;
  for (int level = 0; level < 4; ++level) node = 2 * node + (value >= tree(node) ? 1 : 0);
  return node - 16;
}

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_TABLE16_H_
