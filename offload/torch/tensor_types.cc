// Conversions and checks; see tensor_types.h.
#include "offload/torch/tensor_types.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <sstream>

#include "outboard/error.h"

namespace outboard {

DType dtype_of(at::ScalarType type, std::string_view name) {
  switch (type) {
    case at::kFloat:
      return DType::kF32;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kHalf:
      return DType::kF16;
    default:
      fail(ErrorKind::kType, kWho, "parameter ", name, " has dtype ", c10::toString(type),
           "; float32, bfloat16 and float16 are supported: convert the model");
  }
}

at::ScalarType scalar_type_of(DType type) {
  return type == DType::kF32 ? at::kFloat : type == DType::kBF16 ? at::kBFloat16 : at::kHalf;
}

at::ScalarType scalar_type_of(Format format) {
  return format == Format::kF32 ? at::kFloat : at::kBFloat16;
}

at::ScalarType scalar_type_of(MasterFormat format) {
  return format == MasterFormat::kSplit    ? at::kShort
         : format == MasterFormat::kSplit8 ? at::kChar
                                           : at::kFloat;
}

std::string_view name_of(MasterFormat format) {
  switch (format) {
    case MasterFormat::kWeight:
      return "weight";
    case MasterFormat::kSplit:
      return "split";
    case MasterFormat::kF32:
      return "fp32";
    case MasterFormat::kStochastic:
      return "none";
    case MasterFormat::kSplit8:
      return "split8";
  }
  return "";
}

MasterFormat master_named(std::string_view word, DType type, bool has_rule, std::string_view name) {
  constexpr std::array<std::string_view, 5> kWords = {"auto", "split", "split8", "fp32", "none"};
  if (std::ranges::find(kWords, word) == kWords.end()) {
    fail(ErrorKind::kValue, kWho, "master is \"", word,
         "\"; give \"auto\", \"split\", \"split8\", \"fp32\" or \"none\"");
  }
  if (type == DType::kF32) return MasterFormat::kWeight;  // the weight is its own master
  if (word == "fp32" || (word == "auto" && (!has_rule || type == DType::kF16))) {
    return MasterFormat::kF32;
  }
  if (!has_rule) {
    fail(ErrorKind::kValue, kWho, "master \"", word, "\" of ", name,
         " needs a native rule; an optimizer class without one is run on fp32 masters: give "
         "master=\"auto\" or \"fp32\"");
  }
  if (type == DType::kF16) {
    fail(ErrorKind::kValue, kWho, "master \"", word, "\" of the float16 parameter ", name,
         " does not exist; give master=\"auto\" or \"fp32\"");
  }
  if (word == "none") return MasterFormat::kStochastic;
  return word == "split8" ? MasterFormat::kSplit8 : MasterFormat::kSplit;
}

StateFormatArray formats_of(const RuleInfo& rule, const FormatWish& wish, size_t elements,
                            size_t min_quantized_elements) {
  const StateFormats named = state_formats_named(wish.name, wish.block_elements);
  StateFormatArray formats = {};
  for (size_t i = 0; i < rule.states.size(); ++i) {
    if (rule.states[i].shape != StateShape::kElements) continue;  // fp32
    const StateFormat format = rule.states[i].is_signed ? named.signed_state : named.unsigned_state;
    const bool is_too_small = format.block_elements > 0 && elements < min_quantized_elements;
    formats[i] = is_too_small ? StateFormat{} : format;
  }
  return formats;
}

void check_generic_format(const FormatWish& wish, std::string_view name) {
  const StateFormats named = state_formats_named(wish.name, wish.block_elements);
  if (named.signed_state == StateFormat{} && named.unsigned_state == StateFormat{}) return;
  fail(ErrorKind::kValue, kWho, "state_format \"", wish.name, "\" of ", name,
       " needs a native rule, and its optimizer class has none; give \"fp32\"");
}

std::string describe(const RuleInfo& rule, const StateFormatArray& formats) {
  std::vector<std::string> names;
  for (size_t i = 0; i < rule.states.size(); ++i) {
    std::string name(format_info(formats[i].format).name);
    if (formats[i].format == Format::kF32) name = "fp32";
    if (formats[i].block_elements > 0) name += "/" + std::to_string(formats[i].block_elements);
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  }
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << c10::toString(tensor.scalar_type()) << tensor.sizes() << " on " << tensor.device().str();
  return text.str();
}

bool is_dense(const at::Tensor& tensor) { return tensor.is_non_overlapping_and_dense(); }

bool is_matrix(const at::Tensor& tensor) {
  return tensor.dim() >= 2 && tensor.numel() > 0 && tensor.is_contiguous();
}

void check_matrix(const at::Tensor& tensor, std::string_view name) {
  if (is_matrix(tensor)) return;
  fail(
      ErrorKind::kValue, kWho, "parameter ", name, " is ", describe(tensor),
      " and has no row and column means; they need two dimensions, elements and contiguous memory: "
      "give it the rule AdamW");
}

void check_parameter(const at::Tensor& tensor, std::string_view name) {
  if (tensor.layout() != at::kStrided) {
    fail(ErrorKind::kValue, kWho, "parameter ", name, " is sparse; dense parameters are supported");
  }
  if (!is_dense(tensor)) {
    fail(ErrorKind::kValue, kWho, "parameter ", name, " with strides of ", describe(tensor),
         " has gaps or shares elements; make it contiguous before making the optimizer");
  }
  if (!tensor.is_leaf()) {
    fail(ErrorKind::kValue, kWho, "parameter ", name,
         " is computed from other tensors; give leaf tensors");
  }
}

LossScale::LossScale(const at::Tensor& loss_scale, const at::Tensor& found_inf)
    : loss_scale_(loss_scale), found_inf_(found_inf) {
  for (at::Tensor* tensor : {&loss_scale_, &found_inf_}) {
    if (!tensor->defined()) continue;
    if (tensor->numel() != 1) {
      fail(ErrorKind::kValue, kWho, "grad_scale or found_inf is ", describe(*tensor),
           "; each must be one element");
    }
    *tensor = tensor->to(at::kFloat);
  }
  if (loss_scale_.defined() && found_inf_.defined())
    found_inf_ = found_inf_.to(loss_scale_.device());
}

Memory LossScale::memory() const {
  const bool on_device = (loss_scale_.defined() && loss_scale_.is_cuda()) ||
                         (found_inf_.defined() && found_inf_.is_cuda());
  return on_device ? Memory::kDevice : Memory::kHost;
}

const float* LossScale::pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

}  // namespace outboard
