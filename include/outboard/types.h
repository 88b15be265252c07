// The small vocabulary that every folder shares: element types, storage of weights, and the sizes
// that the whole project agrees on. No behaviour lives here.
#ifndef OUTBOARD_TYPES_H_
#define OUTBOARD_TYPES_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace outboard {

/// Elements that a CPU kernel holds in L1 between decode and encode. State arrays are padded to
/// whole tiles.
inline constexpr size_t kTileElements = 256;

/// Consecutive elements of one parameter whose sum of squares is one fp32 value (64 lanes, fixed
/// tree).
inline constexpr size_t kNormSegmentElements = 4096;

/// The most state tensors that one rule may keep per parameter.
inline constexpr size_t kMaxStates = 4;

/// Element type of a weight or gradient as the model holds it.
enum class DType : uint8_t { kF32, kBF16, kF16 };

[[nodiscard]] constexpr size_t bytes_of(DType type) { return type == DType::kF32 ? 4 : 2; }

[[nodiscard]] constexpr std::string_view name_of(DType type) {
  return type == DType::kF32 ? "float32" : type == DType::kBF16 ? "bfloat16" : "float16";
}

/// How the full-precision value of a weight is kept beside (or as) the weight that the model
/// computes with.
enum class MasterFormat : uint8_t {
  kWeight,      ///< the fp32 weight is its own master (fp32 weights only)
  kSplit,       ///< the bf16 weight is the high half, an int16 array holds the low half; lossless
  kF32,         ///< a separate fp32 master; the 16-bit weight is its rounded image (bf16 or fp16)
  kStochastic,  ///< no master: the bf16 weight is rounded stochastically at each update
  kSplit8,      ///< as kSplit with an int8 array: fp32 rounded stochastically to its upper 24 bits
};

/// Bytes per element of the array beside the weight: 0, 1, 2 or 4.
[[nodiscard]] constexpr size_t bytes_of(MasterFormat format) {
  return format == MasterFormat::kSplit    ? 2
         : format == MasterFormat::kSplit8 ? 1
         : format == MasterFormat::kF32    ? 4
                                           : 0;
}

/// Whether the array beside the weight holds only what the weight lacks: zeros, until the weight is
/// updated.
[[nodiscard]] constexpr bool is_split(MasterFormat format) {
  return format == MasterFormat::kSplit || format == MasterFormat::kSplit8;
}

[[nodiscard]] constexpr size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Elements that an array padded to whole tiles holds.
[[nodiscard]] constexpr size_t padded_elements(size_t elements) {
  return round_up(elements, kTileElements);
}

/// Segment sums that `elements` consecutive elements of one parameter give.
[[nodiscard]] constexpr size_t norm_segments(size_t elements) {
  return (elements + kNormSegmentElements - 1) / kNormSegmentElements;
}

}  // namespace outboard

#endif  // OUTBOARD_TYPES_H_
