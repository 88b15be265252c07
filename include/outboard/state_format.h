// What a state format is called and what it costs; the codecs themselves are in quant/.
#ifndef OUTBOARD_STATE_FORMAT_H_
#define OUTBOARD_STATE_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "outboard/types.h"

namespace outboard {

/// The catalogue's order is the value: enumerators are the types named in formats.def.
enum class Format : uint8_t {
#define OUTBOARD_FORMAT(type, stem) k##type,
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
};

inline constexpr size_t kFormatCount = 0
#define OUTBOARD_FORMAT(type, stem) +1
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
    ;

/// Run-time description of one format.
struct FormatInfo {
  Format format;
  std::string_view name;
  size_t code_bits;       ///< bits per element
  size_t block_elements;  ///< default number of elements that share one fp32 scale; 0: no scales
  std::span<const uint32_t> block_sizes;  ///< what block_elements may be; powers of two
  bool is_signed;                         ///< false: holds no negative values
  bool is_stochastic;                     ///< rounding draws from the counter-based generator
  uint8_t even_code_bits;  ///< the bits of a byte that hold the code of an element of even index
  bool (*is_code)(uint8_t code);  ///< whether an encoder makes this code; null: each occurs

  /// Bytes that the codes of exactly `elements` elements touch, without padding.
  [[nodiscard]] constexpr size_t stored_bytes(size_t elements) const {
    return (elements * code_bits + 7) / 8;
  }
};

/// The format's description; the reference stays valid for the life of the program.
[[nodiscard]] const FormatInfo& format_info(Format format);

/// Looks a single format up by its name ("f32"). Throws Error(kValue) that lists the known names.
[[nodiscard]] const FormatInfo& format_named(std::string_view name);

/// How one state array is stored: a format, and how many elements share a scale. Codes and scales
/// both cover whole tiles or blocks, whichever is longer, so kernels have no tails; what lies
/// beyond the array's end holds the code of zero. Memory filled with zero bytes reads as zeros.
struct StateFormat {
  Format format = Format::kF32;
  uint32_t block_elements = 0;  ///< 0: the format has no scales

  /// Elements of the smallest piece that can be updated by itself.
  [[nodiscard]] constexpr size_t unit_elements() const {
    return block_elements > kTileElements ? block_elements : kTileElements;
  }
  /// Bytes of the codes of `elements` elements.
  [[nodiscard]] size_t code_bytes(size_t elements) const {
    return round_up(elements, unit_elements()) * format_info(format).code_bits / 8;
  }
  /// fp32 scales of `elements` elements.
  [[nodiscard]] constexpr size_t scale_count(size_t elements) const {
    return block_elements == 0 ? 0 : round_up(elements, unit_elements()) / block_elements;
  }
  friend constexpr bool operator==(const StateFormat&, const StateFormat&) = default;
};

/// `format` with blocks of `block_elements`; 0: the format's own default. Throws Error(kValue) for
/// a length that the format does not allow.
[[nodiscard]] StateFormat state_format(Format format, size_t block_elements = 0);

/// One state array of one parameter, or the part of it that starts at element 0 of a whole tile and
/// block. `scales` is null for formats without scales.
struct StateArray {
  void* codes = nullptr;
  float* scales = nullptr;
  size_t block_elements = 0;  ///< elements per scale
};

/// What a user's `state_format` string stands for: one format for signed state, one for second
/// moments and other state that is never negative.
struct StateFormats {
  StateFormat signed_state;
  StateFormat unsigned_state;
};

/// "fp32", "bf16" (nearest rounding for signed state, stochastic for second moments: with nearest,
/// 0.001 * v is below half an ulp and the average stalls), "8bit" (sym8, root8), and so on; the
/// name of a single format stands for both; "a/b" takes the signed format of a and the unsigned one
/// of b. `block_elements`: of every format that has blocks; 0: their own defaults. Throws
/// Error(kValue) that lists the known names, or the lengths that the format allows, or says that
/// what is meant for signed state holds no negative values.
[[nodiscard]] StateFormats state_formats_named(std::string_view name, size_t block_elements = 0);

/// The names that stand for a pair of formats, in the order of documentation.
[[nodiscard]] std::span<const std::string_view> state_format_names();

}  // namespace outboard

#endif  // OUTBOARD_STATE_FORMAT_H_
