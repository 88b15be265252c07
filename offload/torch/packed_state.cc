// Names and checks of packed states; see packed_state.h.
#include "offload/torch/packed_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {

namespace {

constexpr std::string_view kCodes = "codes";
constexpr std::string_view kScales = "scales";
constexpr std::string_view kLayout = "layout";

template <class T>
std::span<const T> elements_of(const at::Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), static_cast<size_t>(tensor.numel())};
}

// Whether strides of these sizes give every element of a dense block of memory a place of its own.
bool is_dense_layout(std::span<const int64_t> sizes, std::span<const int64_t> strides) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1) dims.emplace_back(strides[i], sizes[i]);
  }
  std::ranges::sort(dims);
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

at::Tensor layout_of(const at::Tensor& parameter) {
  at::Tensor layout = at::empty({2, parameter.dim()}, at::kLong);
  auto* next = layout.mutable_data_ptr<int64_t>();
  next = std::ranges::copy(parameter.sizes(), next).out;
  std::ranges::copy(parameter.strides(), next);
  return layout;
}

}  // namespace

// "exp_avg.sym8.128.codes", taken apart.
struct PackedState::Name {
  std::string_view state;
  std::string_view format;
  size_t block_elements = 0;
  std::string_view part;

  static std::optional<Name> of(std::string_view key) {
    const size_t last = key.rfind('.');
    const size_t block = last == std::string_view::npos ? last : key.rfind('.', last - 1);
    const size_t first = key.find('.');
    if (block == std::string_view::npos || first >= block) return std::nullopt;
    Name name{key.substr(0, first), key.substr(first + 1, block - first - 1), 0,
              key.substr(last + 1)};
    const char* end = key.data() + last;
    const auto read = std::from_chars(key.data() + block + 1, end, name.block_elements);
    if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
    if (name.part != kCodes && name.part != kScales && name.part != kLayout) return std::nullopt;
    return name;
  }
};

bool PackedState::is_part(std::string_view key) { return key.find('.') != std::string_view::npos; }

void PackedState::append(std::string_view key, const StateFormat& format, const at::Tensor& codes,
                         const at::Tensor& scales, const at::Tensor& parameter, TensorMap& map) {
  const FormatInfo& info = format_info(format.format);
  const auto elements = static_cast<size_t>(parameter.numel());
  const auto bytes = static_cast<int64_t>(info.stored_bytes(elements));
  at::Tensor stored = codes.narrow(0, 0, bytes);
  if (elements * info.code_bits % 8 != 0) {
    stored = stored.clone();
    stored.narrow(0, bytes - 1, 1).bitwise_and_(static_cast<int64_t>(info.even_code_bits));
  }
  const std::string stem = std::string(key) + "." + std::string(info.name) + "." +
                           std::to_string(format.block_elements) + ".";
  map.emplace_back(stem + std::string(kCodes), stored);
  map.emplace_back(stem + std::string(kScales),
                   scales.narrow(0, 0, static_cast<int64_t>(stored_scales(format, elements))));
  map.emplace_back(stem + std::string(kLayout), layout_of(parameter));
}

void PackedState::add(const Name& name, const at::Tensor& value) {
  at::Tensor& part = name.part == kCodes ? codes_ : name.part == kScales ? scales_ : layout_;
  part = value;
}

std::vector<PackedState> PackedState::find_all(const TensorMap& map, const RuleInfo& rule,
                                               const at::Tensor& parameter, std::string_view name) {
  std::vector<PackedState> found;
  for (const auto& [key, value] : map) {
    if (!is_part(key)) continue;
    const auto refuse = [&, &key = key](const auto&... what) {
      fail(ErrorKind::kValue, kWho, "state \"", key, "\" of ", name, " ", what...,
           "; load a state dict that outboard has written for this model. Nothing was changed");
    };
    const std::optional<Name> parts = Name::of(key);
    const auto state = std::ranges::find(rule.states, parts ? parts->state : "", &StateInfo::key);
    if (!parts || state == rule.states.end()) refuse("is none that ", rule.name, " has");
    if (state->shape != StateShape::kElements) refuse("is kept in fp32 and has no codes");
    StateFormat format;
    try {
      format = state_format(format_named(parts->format).format, parts->block_elements);
    } catch (const Error& error) {
      refuse("has a format that does not exist (", error.what(), ")");
    }
    if (format.block_elements == 0) refuse("is of a format without blocks");
    if (value.layout() != at::kStrided) refuse("is ", describe(value), ", not a dense tensor");
    const auto index = static_cast<size_t>(state - rule.states.begin());
    auto packed = std::ranges::find(found, index, &PackedState::state_);
    if (packed == found.end()) {
      packed = found.insert(found.end(), PackedState());
      packed->state_ = index;
      packed->format_ = format;
    }
    if (packed->format_ != format) refuse("has another format than the rest of that state");
    packed->add(*parts, value.detach().to(at::kCPU).contiguous());
  }
  for (const PackedState& packed : found) {
    const std::string flaw = packed.flaw(parameter);
    if (flaw.empty()) continue;
    fail(ErrorKind::kValue, kWho, "the compressed state \"", rule.states[packed.state_].key,
         "\" of ", name, " is damaged: ", flaw,
         "; load a state dict that outboard has written for this model. Nothing was changed");
  }
  return found;
}

std::string PackedState::flaw(const at::Tensor& parameter) const {
  const std::pair<const at::Tensor*, at::ScalarType> parts[] = {
      {&codes_, at::kByte}, {&scales_, at::kFloat}, {&layout_, at::kLong}};
  for (const auto& [tensor, type] : parts) {
    if (!tensor->defined()) return "its codes, scales or layout are missing";
    if (tensor->scalar_type() == type) continue;
    return "it holds " + describe(*tensor) + " where " + c10::toString(type) + " belongs";
  }
  const auto dims = static_cast<size_t>(parameter.dim());
  const auto layout = elements_of<int64_t>(layout_);
  if (layout.size() != 2 * dims || !std::ranges::equal(layout.first(dims), parameter.sizes())) {
    return "its layout is not that of " + describe(parameter);
  }
  if (parameter.numel() > 0 && !is_dense_layout(layout.first(dims), layout.last(dims))) {
    return "its strides leave gaps or share elements";
  }
  return flaw_of(stored(), format_, static_cast<size_t>(parameter.numel()));
}

bool PackedState::has_order_of(const at::Tensor& parameter) const {
  const auto layout = elements_of<int64_t>(layout_);
  const auto dims = static_cast<size_t>(parameter.dim());
  for (size_t i = 0; i < dims; ++i) {
    const bool decides = parameter.sizes()[i] > 1;
    if (decides && layout[dims + i] != parameter.strides()[i]) return false;
  }
  return true;
}

StoredState PackedState::stored() const {
  return {elements_of<uint8_t>(codes_), elements_of<float>(scales_)};
}

at::Tensor PackedState::decoded() const {
  const auto layout = elements_of<int64_t>(layout_);
  const size_t dims = layout.size() / 2;
  const at::IntArrayRef sizes(layout.data(), dims);
  const at::IntArrayRef strides(layout.data() + dims, dims);
  at::Tensor values = at::empty_strided(sizes, strides, at::kFloat);
  const auto elements = static_cast<size_t>(values.numel());
  if (elements == 0) return values;
  std::vector<uint8_t> codes(format_.code_bytes(elements));
  std::vector<float> scales(format_.scale_count(elements));
  const StateArray array{codes.data(), scales.data(), format_.block_elements};
  restore_state(stored(), format_, elements, array);
  decode_state(array, format_, elements, values.mutable_data_ptr<float>());
  return values;
}

}  // namespace outboard
