// The conversions of transfer.h for every SIMD target.
#include "cpu_kernels/transfer.h"

#include <cstring>

#include "outboard/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/transfer.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "hwy/highway.h"
#include "quant/dispatch.h"
#include "quant/random-inl.h"
#include "quant/rounding-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace quant::HWY_NAMESPACE;  // NOLINT: the per-target functions of the two -inl.h files

void load_bf16(const void* from, size_t count, float* out) {
  const auto* codes = static_cast<const uint16_t*>(from);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    hn::StoreU(f32_from_bf16(load_halfwords(codes + i)), FloatTag(), out + i);
  }
}

void load_f16(const void* from, size_t count, float* out) {
  const auto* codes = static_cast<const uint16_t*>(from);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    hn::StoreU(f32_from_f16(load_halfwords(codes + i)), FloatTag(), out + i);
  }
}

void load_bf16_weight(const void* weight, const void*, size_t count, float* out) {
  load_bf16(weight, count, out);
}

void load_split_weight(const void* weight, const void* master, size_t count, float* out) {
  const auto* high = static_cast<const uint16_t*>(weight);
  const auto* low = static_cast<const int16_t*>(master);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    hn::StoreU(load_joined(high + i, low + i), FloatTag(), out + i);
  }
}

void store_split_weight(const float* in, size_t count, const RandomContext&, uint64_t, void* weight,
                        void* master) {
  auto* high = static_cast<uint16_t*>(weight);
  auto* low = static_cast<uint16_t*>(master);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    const BitsVec bits = splittable_bits(hn::LoadU(FloatTag(), in + i));
    store_halfwords(split_high(bits), high + i);
    store_halfwords(bits, low + i);
  }
}

void load_split8_weight(const void* weight, const void* master, size_t count, float* out) {
  const auto* high = static_cast<const uint16_t*>(weight);
  const auto* low = static_cast<const int8_t*>(master);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    hn::StoreU(load_joined8(high + i, low + i), FloatTag(), out + i);
  }
}

void store_split8_weight(const float* in, size_t count, const RandomContext& random,
                         uint64_t first_element, void* weight, void* master) {
  auto* high = static_cast<uint16_t*>(weight);
  auto* low = static_cast<uint8_t*>(master);
  for (size_t tile = 0; tile < count; tile += kTileElements) {
    const RandomTile draws(random, first_element + tile);
    for (size_t i = 0; i < kTileElements; i += hn::Lanes(FloatTag())) {
      const FloatVec value = hn::LoadU(FloatTag(), in + tile + i);
      const BitsVec bits = split8_bits(value, load_halfwords(draws.halfwords() + i));
      store_halfwords(split_high(bits), high + tile + i);
      store_split8_low(bits, low + tile + i);
    }
  }
}

void store_bf16_weight(const float* in, size_t count, const RandomContext&, uint64_t, void* weight,
                       void*) {
  auto* codes = static_cast<uint16_t*>(weight);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    store_halfwords(bf16_nearest(hn::LoadU(FloatTag(), in + i)), codes + i);
  }
}

void store_f16_weight(const float* in, size_t count, const RandomContext&, uint64_t, void* weight,
                      void*) {
  auto* codes = static_cast<uint16_t*>(weight);
  for (size_t i = 0; i < count; i += hn::Lanes(FloatTag())) {
    store_halfwords(f16_nearest(hn::LoadU(FloatTag(), in + i)), codes + i);
  }
}

void store_stochastic_weight(const float* in, size_t count, const RandomContext& random,
                             uint64_t first_element, void* weight, void*) {
  auto* codes = static_cast<uint16_t*>(weight);
  for (size_t tile = 0; tile < count; tile += kTileElements) {
    const RandomTile draws(random, first_element + tile);
    for (size_t i = 0; i < kTileElements; i += hn::Lanes(FloatTag())) {
      const BitsVec random16 = load_halfwords(draws.halfwords() + i);
      const FloatVec value = hn::LoadU(FloatTag(), in + tile + i);
      store_halfwords(bf16_stochastic(value, random16), codes + tile + i);
    }
  }
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
namespace {

void store_f32_weight(const float* in, size_t count, const RandomContext&, uint64_t, void* weight,
                      void*) {
  std::memcpy(weight, in, count * sizeof(float));
}

bool can_hold(MasterFormat master, DType weight) {
  switch (master) {
    case MasterFormat::kWeight:
      return weight == DType::kF32;
    case MasterFormat::kSplit:
    case MasterFormat::kSplit8:
    case MasterFormat::kStochastic:
      return weight == DType::kBF16;
    case MasterFormat::kF32:
      return true;
  }
  return false;
}

}  // namespace

HWY_EXPORT(load_bf16);
HWY_EXPORT(load_f16);
HWY_EXPORT(load_bf16_weight);
HWY_EXPORT(load_split_weight);
HWY_EXPORT(store_split_weight);
HWY_EXPORT(load_split8_weight);
HWY_EXPORT(store_split8_weight);
HWY_EXPORT(store_bf16_weight);
HWY_EXPORT(store_f16_weight);
HWY_EXPORT(store_stochastic_weight);

Transfer resolve_transfer(DType gradient, DType weight, MasterFormat master) {
  if (!can_hold(master, weight)) {
    fail(ErrorKind::kType, "resolve_transfer", "master format ", static_cast<int>(master),
         " cannot hold a ", name_of(weight),
         " weight; use the weight itself for float32, split, split8 or stochastic for bfloat16, or "
         "float32");
  }
  choose_target();
  Transfer transfer = {};
  if (gradient == DType::kBF16) transfer.load_gradient = OUTBOARD_SIMD_FUNCTION(load_bf16);
  if (gradient == DType::kF16) transfer.load_gradient = OUTBOARD_SIMD_FUNCTION(load_f16);
  if (master == MasterFormat::kSplit) {
    transfer.load_weight = OUTBOARD_SIMD_FUNCTION(load_split_weight);
    transfer.store_weight = OUTBOARD_SIMD_FUNCTION(store_split_weight);
  } else if (master == MasterFormat::kSplit8) {
    transfer.load_weight = OUTBOARD_SIMD_FUNCTION(load_split8_weight);
    transfer.store_weight = OUTBOARD_SIMD_FUNCTION(store_split8_weight);
  } else if (master == MasterFormat::kStochastic) {
    transfer.load_weight = OUTBOARD_SIMD_FUNCTION(load_bf16_weight);
    transfer.store_weight = OUTBOARD_SIMD_FUNCTION(store_stochastic_weight);
  } else if (master == MasterFormat::kF32) {
    transfer.store_weight = weight == DType::kBF16  ? OUTBOARD_SIMD_FUNCTION(store_bf16_weight)
                            : weight == DType::kF16 ? OUTBOARD_SIMD_FUNCTION(store_f16_weight)
                                                    : &store_f32_weight;
  }
  return transfer;
}

}  // namespace outboard::cpu
#endif
