// How the fused step reads gradients and reads and writes weights with their masters: every element
// type and master format, whole runs by vector accesses, ragged or misaligned ones by element.
#ifndef OUTBOARD_GPU_KERNELS_MODEL_ACCESS_CUH_
#define OUTBOARD_GPU_KERNELS_MODEL_ACCESS_CUH_

#include <cstdint>

#include "outboard/types.h"
#include "quant/device_rounding.cuh"
#include "quant/device_words.cuh"
#include "quant/rounding.h"

namespace outboard::gpu {

namespace device = quant::device;

/// Element types of a launch. Kernels take them as compile-time constants or read them at run time.
struct LaunchTypes {
  DType gradient;
  DType weight;
  MasterFormat master;

  friend constexpr bool operator==(const LaunchTypes&, const LaunchTypes&) = default;
};

/// Where a lane's run of elements lies.
struct Run {
  uint64_t first;
  int count;               ///< elements of the run that exist; read for ragged runs only
  bool is_beyond = false;  ///< the run lies behind the last tile, where masters have ended
};

/// Fetches a run of `type` elements without using it. kWhole: the run exists and is aligned; else
/// element by element, with zeros beyond the end.
template <int kRun, bool kWhole>
__device__ __forceinline__ void load_run(DType type, const void* source, Run run, uint32_t* words) {
  if constexpr (kWhole) {
    if (type == DType::kF32) {
      device::load_words<kRun>(static_cast<const float*>(source) + run.first, words);
    } else {
      device::load_words<kRun / 2>(static_cast<const uint16_t*>(source) + run.first, words);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const bool exists = i < run.count;
      const uint64_t at = run.first + i;
      if (type == DType::kF32) {
        words[i] = exists ? static_cast<const uint32_t*>(source)[at] : 0;
      } else {
        device::set_halfword(words, i,
                             exists ? static_cast<const uint16_t*>(source)[at] : uint16_t{0});
      }
    }
  }
}

/// The inverse of load_run; writes nothing beyond the end.
template <int kRun, bool kWhole>
__device__ __forceinline__ void store_run(DType type, void* target, Run run,
                                          const uint32_t* words) {
  if constexpr (kWhole) {
    if (type == DType::kF32) {
      device::store_words<kRun>(static_cast<float*>(target) + run.first, words);
    } else {
      device::store_words<kRun / 2>(static_cast<uint16_t*>(target) + run.first, words);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i >= run.count) continue;
      if (type == DType::kF32) {
        static_cast<uint32_t*>(target)[run.first + i] = words[i];
      } else {
        static_cast<uint16_t*>(target)[run.first + i] = device::halfword(words, i);
      }
    }
  }
}

/// The fp32 values of a fetched run; exact.
template <int kRun>
__device__ __forceinline__ void widen(DType type, const uint32_t* words, float* values) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (type == DType::kF32) {
      values[i] = exact::from_bits(words[i]);
    } else if (type == DType::kBF16) {
      values[i] = quant::f32_from_bf16(device::halfword(words, i));
    } else {
      values[i] = device::f32_from_f16(device::halfword(words, i));
    }
  }
}

/// A run of weights on its way from memory through a rule and back.
template <int kRun, bool kWhole>
struct WeightRun {
  uint32_t weight[kRun];
  uint32_t master[kRun];

  /// Fetches the weight, or its separate fp32 master, or both parts of a split one.
  __device__ __forceinline__ void load(const LaunchTypes& types, const void* weights,
                                       const void* masters, Run run) {
    if (types.master == MasterFormat::kF32) {
      if (run.is_beyond) return;
      device::load_words<kRun>(static_cast<const float*>(masters) + run.first, master);
      return;
    }
    load_run<kRun, kWhole>(types.weight, weights, run, weight);
    if (types.master == MasterFormat::kSplit && !run.is_beyond) {
      device::load_words<kRun / 2>(static_cast<const int16_t*>(masters) + run.first, master);
    } else if (types.master == MasterFormat::kSplit8 && !run.is_beyond) {
      device::load_words<kRun / 4>(static_cast<const int8_t*>(masters) + run.first, master);
    }
  }

  /// The full-precision values of what load() fetched.
  __device__ __forceinline__ void decode(const LaunchTypes& types, float* values) const {
    if (types.master == MasterFormat::kF32) {
      widen<kRun>(DType::kF32, master, values);
    } else if (types.master == MasterFormat::kSplit) {
#pragma unroll
      for (int i = 0; i < kRun / 2; ++i) device::join_pair({weight[i], master[i]}, values + 2 * i);
    } else if (types.master == MasterFormat::kSplit8) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        values[i] = quant::join8_f32(device::halfword(weight, i),
                                     static_cast<int8_t>(master[i / 4] >> (8 * (i % 4))));
      }
    } else {
      widen<kRun>(types.weight, weight, values);
    }
  }

  /// Writes weight and master. kAreOrdinary: of magnitudes below kOrdinaryLimit.
  template <bool kAreOrdinary = false>
  __device__ __forceinline__ void store(const LaunchTypes& types, const float* values,
                                        const device::RandomRun& random, void* weights,
                                        void* masters, Run run) {
    uint32_t draws[kRun / 2] = {};
    if (types.master == MasterFormat::kStochastic || types.master == MasterFormat::kSplit8) {
      device::random_words<kRun>(random, draws);
    }
#pragma unroll
    for (int i = 0; i < kRun / 2; ++i) {
      encode_pair<kAreOrdinary>(types, values + 2 * i, draws[i], i);
    }
    store_run<kRun, kWhole>(types.weight, weights, run, weight);
    if (run.is_beyond) return;
    if (types.master == MasterFormat::kF32) {
      device::store_words<kRun>(static_cast<float*>(masters) + run.first, master);
    } else if (types.master == MasterFormat::kSplit) {
      device::store_words<kRun / 2>(static_cast<int16_t*>(masters) + run.first, master);
    } else if (types.master == MasterFormat::kSplit8) {
      device::store_words<kRun / 4>(static_cast<int8_t*>(masters) + run.first, master);
    }
  }

 private:
  /// Encodes elements 2i and 2i + 1.
  template <bool kAreOrdinary>
  __device__ __forceinline__ void encode_pair(const LaunchTypes& types, const float* values,
                                              uint32_t draws, int i) {
    if (types.master == MasterFormat::kWeight) {
      weight[2 * i] = exact::bits(values[0]);
      weight[2 * i + 1] = exact::bits(values[1]);
    } else if (types.master == MasterFormat::kSplit) {
      const device::SplitPair split = device::split_pair<kAreOrdinary>(values[0], values[1]);
      weight[i] = split.high;
      master[i] = split.low;
    } else if (types.master == MasterFormat::kSplit8) {
      const device::SplitPair split =
          device::split8_pair<kAreOrdinary>(values[0], values[1], draws);
      weight[i] = split.high;
      device::set_halfword(master, i, static_cast<uint16_t>(split.low));
    } else if (types.master == MasterFormat::kStochastic) {
      weight[i] = device::bf16_pair_stochastic<kAreOrdinary>(values[0], values[1], draws);
    } else {
      master[2 * i] = exact::bits(values[0]);
      master[2 * i + 1] = exact::bits(values[1]);
      weight[i] = types.weight == DType::kBF16 ? device::bf16_pair_nearest(values[0], values[1])
                                               : f16_pair_nearest(values[0], values[1]);
    }
  }

  static __device__ __forceinline__ uint32_t f16_pair_nearest(float low, float high) {
    return static_cast<uint32_t>(quant::f16_nearest(low)) |
           static_cast<uint32_t>(quant::f16_nearest(high)) << 16;
  }
};

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_MODEL_ACCESS_CUH_
