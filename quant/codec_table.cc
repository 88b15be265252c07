// The run-time view of the catalogue of state formats: descriptions, names and codecs. Expanded
// from formats.def.
#include <array>
#include <string>

#include "outboard/error.h"
#include "outboard/state_format.h"
#include "outboard_codecs.h"
#include "quant/codec.h"

namespace outboard {
namespace {

template <class FormatType>
constexpr FormatInfo describe(Format format) {
  return {.format = format,
          .name = FormatType::kName,
          .code_bits = FormatType::kCodeBits,
          .block_elements = FormatType::kBlockElements,
          .is_stochastic = FormatType::kIsStochastic};
}

constexpr std::array<FormatInfo, kFormatCount> kFormats{
#define OUTBOARD_FORMAT(type, stem) describe<quant::type>(Format::k##type),
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
};

struct NamedFormats {
  std::string_view name;
  StateFormats formats;
};

constexpr std::array kNamedFormats{
    NamedFormats{"fp32", {Format::kF32, Format::kF32}},
    NamedFormats{"bf16", {Format::kBF16, Format::kBF16Stochastic}},
};

template <class Table>
std::string list_names(const Table& table) {
  std::string names;
  for (const auto& entry : table) {
    names += names.empty() ? "" : ", ";
    names += entry.name;
  }
  return names;
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

StateFormats state_formats_named(std::string_view name) {
  for (const NamedFormats& entry : kNamedFormats) {
    if (entry.name == name) return entry.formats;
  }
  fail(ErrorKind::kValue, "state_formats_named", "unknown state_format '", name,
       "'; choose one of ", list_names(kNamedFormats));
}

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
