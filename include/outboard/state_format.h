// What a state format is called and what it costs; the codecs themselves are in quant/.
#ifndef OUTBOARD_STATE_FORMAT_H_
#define OUTBOARD_STATE_FORMAT_H_

#include <cstddef>
#include <cstdint>
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

/// Run-time description of one format. An array of n elements holds code_bytes(n) bytes of codes
/// and scale_count(n) fp32 scales; both cover whole tiles or blocks, whichever is longer, so
/// kernels have no tails.
struct FormatInfo {
  Format format;
  std::string_view name;
  size_t code_bits;       ///< bits per element
  size_t block_elements;  ///< elements that share one scale; 0: the format has no scales
  bool is_stochastic;     ///< rounding draws from the counter-based generator

  [[nodiscard]] constexpr size_t unit_elements() const {
    return block_elements > kTileElements ? block_elements : kTileElements;
  }
  [[nodiscard]] constexpr size_t code_bytes(size_t elements) const {
    return round_up(elements, unit_elements()) * code_bits / 8;
  }
  [[nodiscard]] constexpr size_t scale_count(size_t elements) const {
    return block_elements == 0 ? 0 : round_up(elements, unit_elements()) / block_elements;
  }
};

/// The format's description; the reference stays valid for the life of the program.
[[nodiscard]] const FormatInfo& format_info(Format format);

/// Looks a single format up by its name ("f32"). Throws Error(kValue) that lists the known names.
[[nodiscard]] const FormatInfo& format_named(std::string_view name);

/// One state array of one parameter, or the part of it that starts at element 0 of a whole tile and
/// block. `scales` is null for formats without scales.
struct StateArray {
  void* codes = nullptr;
  float* scales = nullptr;
};

/// What a user's `state_format` string stands for: one format for signed state, one for second
/// moments.
struct StateFormats {
  Format signed_state;
  Format unsigned_state;
};

/// "fp32": fp32 for both. "bf16": bf16 with nearest rounding for signed state, with stochastic
/// rounding for second moments (with nearest, 0.001 * v is below half an ulp and the average
/// stalls). Throws Error(kValue) that lists the known names.
[[nodiscard]] StateFormats state_formats_named(std::string_view name);

}  // namespace outboard

#endif  // OUTBOARD_STATE_FORMAT_H_
