// The run-time view of the catalogue of state formats: descriptions, names and codecs. Expanded
// from formats.def.
#include <algorithm>
#include <array>
#include <string>

#include "outboard/error.h"
#include "outboard/state_format.h"
#include "outboard_codecs.h"
#include "quant/block_format.h"
#include "quant/codec.h"

namespace outboard {
namespace {

template <class FormatType>
constexpr FormatInfo describe(Format format) {
  FormatInfo info{.format = format,
                  .name = FormatType::kName,
                  .code_bits = FormatType::kCodeBits,
                  .block_elements = FormatType::kBlockElements,
                  .block_sizes = {},
                  .is_signed = FormatType::kIsSigned,
                  .is_stochastic = FormatType::kIsStochastic,
                  .even_code_bits = 0xFF,
                  .is_code = nullptr};
  if constexpr (FormatType::kBlockElements > 0) info.block_sizes = FormatType::kBlockSizes;
  if constexpr (FormatType::kCodeBits == 4) {
    info.even_code_bits = FormatType::kNibbleOrder == quant::NibbleOrder::kEvenLow ? 0x0F : 0xF0;
  }
  if constexpr (requires { FormatType::is_code(uint8_t{}); }) info.is_code = &FormatType::is_code;
  return info;
}

constexpr std::array<FormatInfo, kFormatCount> kFormats{
#define OUTBOARD_FORMAT(type, stem) describe<quant::type>(Format::k##type),
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
};

struct NamedFormats {
  std::string_view name;
  Format signed_state;
  Format unsigned_state;
  size_t block_elements = 0;
};

constexpr std::array kNamedFormats{
    NamedFormats{"fp32", Format::kF32, Format::kF32},
    NamedFormats{"bf16", Format::kBF16, Format::kBF16Stochastic},
    NamedFormats{"8bit", Format::kSym8, Format::kRoot8},
    NamedFormats{"4bit", Format::kNF4, Format::kRoot4},
    NamedFormats{"fp8", Format::kE4M3, Format::kE4M3Root},
    NamedFormats{"dynamic8", Format::kDynamic8Signed, Format::kDynamic8Unsigned},
    NamedFormats{"dynamic8-2048", Format::kDynamic8Signed, Format::kDynamic8Unsigned, 2048},
    NamedFormats{"ao8", Format::kAo8Signed, Format::kAo8Unsigned},
    NamedFormats{"ao4", Format::kAo4Signed, Format::kAo4Unsigned},
    NamedFormats{"lpmm4", Format::kLpmm4Signed, Format::kLpmm4Unsigned},
    NamedFormats{"aofp8", Format::kAoFP8, Format::kAoFP8},
};

constexpr auto kNames = [] {
  std::array<std::string_view, kNamedFormats.size()> names;
  std::ranges::transform(kNamedFormats, names.begin(), &NamedFormats::name);
  return names;
}();

template <class Table>
std::string list_names(const Table& table) {
  std::string names;
  for (const auto& entry : table) {
    names += names.empty() ? "" : ", ";
    names += entry.name;
  }
  return names;
}

/// One side of "a/b", or all of a name without a slash.
NamedFormats find_formats(std::string_view name) {
  const auto found = std::ranges::find(kNamedFormats, name, &NamedFormats::name);
  if (found != kNamedFormats.end()) return *found;
  const auto single = std::ranges::find(kFormats, name, &FormatInfo::name);
  if (single != kFormats.end()) return {name, single->format, single->format};
  fail(ErrorKind::kValue, "state_formats_named", "unknown state_format '", name,
       "'; choose one of ", list_names(kNamedFormats), ", one of the formats ",
       list_names(kFormats), ", or two of them as 'signed/unsigned'");
}

/// The wanted block length where the format has blocks.
StateFormat with_blocks(Format format, size_t wanted, size_t usual) {
  if (format_info(format).block_elements == 0) return {format, 0};
  return state_format(format, wanted != 0 ? wanted : usual);
}

}  // namespace

#define OUTBOARD_FORMAT(type, stem) \
  template <>                       \
  Codec resolve_codec<quant::type>();
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT

const FormatInfo& format_info(Format format) { return kFormats.at(static_cast<size_t>(format)); }

const FormatInfo& format_named(std::string_view name) {
  for (const FormatInfo& info : kFormats) {
    if (info.name == name) return info;
  }
  fail(ErrorKind::kValue, "format_named", "unknown format '", name, "'; known are ",
       list_names(kFormats));
}

StateFormat state_format(Format format, size_t block_elements) {
  const FormatInfo& info = format_info(format);
  if (block_elements == 0) return {format, static_cast<uint32_t>(info.block_elements)};
  if (std::ranges::find(info.block_sizes, block_elements) == info.block_sizes.end()) {
    std::string known;
    for (const uint32_t size : info.block_sizes) known += ' ' + std::to_string(size);
    fail(ErrorKind::kValue, "state_format", "format '", info.name, "' has no blocks of ",
         block_elements, " elements; ",
         known.empty() ? "it has no blocks: leave the length out" : "choose one of" + known);
  }
  return {format, static_cast<uint32_t>(block_elements)};
}

StateFormats state_formats_named(std::string_view name, size_t block_elements) {
  const size_t slash = name.find('/');
  const NamedFormats first = find_formats(name.substr(0, slash));
  const NamedFormats second =
      slash == std::string_view::npos ? first : find_formats(name.substr(slash + 1));
  const FormatInfo& signed_state = format_info(first.signed_state);
  if (!signed_state.is_signed) {
    fail(ErrorKind::kValue, "state_formats_named", "state_format '", name,
         "' stores signed state as ", signed_state.name,
         ", which holds no negative values; name a signed format before it: '8bit/",
         signed_state.name, "'");
  }
  return {with_blocks(first.signed_state, block_elements, first.block_elements),
          with_blocks(second.unsigned_state, block_elements, second.block_elements)};
}

std::span<const std::string_view> state_format_names() { return kNames; }

Codec codec(Format format) {
  switch (format) {
#define OUTBOARD_FORMAT(type, stem) \
  case Format::k##type:             \
    return resolve_codec<quant::type>();
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
  }
  fail(ErrorKind::kValue, "codec", "unknown format ", static_cast<int>(format),
       "; use a value of the catalogue");
}

}  // namespace outboard
