// The counter-based generator behind stochastic rounding: Philox-4x32-10, so that a random number
// is a pure function of (seed, parameter, step, stream, element) and never depends on chunks,
// threads or devices.
#ifndef OUTBOARD_QUANT_RANDOM_H_
#define OUTBOARD_QUANT_RANDOM_H_

#include <cstdint>

#include "outboard/hd.h"

namespace outboard {

/// Key of one parameter's generator.
struct RandomKey {
  uint32_t low = 0;
  uint32_t high = 0;
};

/// Four 32-bit outputs of one Philox call; they serve 8 elements, a halfword each.
struct PhiloxBlock {
  uint32_t word[4];
};

OUTBOARD_HD uint64_t splitmix64(uint64_t z) {
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

/// Key from the optimizer's seed and the parameter's stable 64-bit id.
OUTBOARD_HD RandomKey random_key(uint64_t seed, uint64_t parameter_id) {
  const uint64_t key = splitmix64(seed ^ (parameter_id * 0x9E3779B97F4A7C15ull));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

/// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC
/// 2011).
OUTBOARD_HD PhiloxBlock philox(PhiloxBlock counter, RandomKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = 0xD2511F53ull * counter.word[0];
    const uint64_t product1 = 0xCD9E8D57ull * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.low,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.high,
                static_cast<uint32_t>(product0)}};
    key = {key.low + 0x9E3779B9u, key.high + 0xBB67AE85u};
  }
  return counter;
}

/// The Philox block that serves elements [8k, 8k + 8) that contain `element`.
OUTBOARD_HD PhiloxBlock random_block(RandomKey key, uint32_t step, uint32_t stream,
                                     uint64_t element) {
  const uint64_t index = element >> 3;
  return philox({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), step, stream}},
                key);
}

/// 16 uniform random bits for one element.
OUTBOARD_HD uint32_t random16(RandomKey key, uint32_t step, uint32_t stream, uint64_t element) {
  const PhiloxBlock block = random_block(key, step, stream, element);
  const uint32_t halfword = static_cast<uint32_t>(element & 7);
  return (block.word[halfword >> 1] >> (16 * (halfword & 1))) & 0xFFFFu;
}

}  // namespace outboard

#endif  // OUTBOARD_QUANT_RANDOM_H_
