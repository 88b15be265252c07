// Between torch's vocabulary and outboard's: element types, names of masters, checks and
// descriptions of tensors.
#ifndef OUTBOARD_OFFLOAD_TORCH_TENSOR_TYPES_H_
#define OUTBOARD_OFFLOAD_TORCH_TENSOR_TYPES_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <string>
#include <string_view>

#include "outboard/engine.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"

namespace outboard {

/// Who speaks in the messages of this folder.
inline constexpr std::string_view kWho = "outboard";

/// Throws Error(kType) naming the parameter for types other than float32, bfloat16 and float16.
[[nodiscard]] DType dtype_of(at::ScalarType type, std::string_view name);
[[nodiscard]] at::ScalarType scalar_type_of(DType type);
[[nodiscard]] at::ScalarType scalar_type_of(Format format);
/// Of the array beside the weight.
[[nodiscard]] at::ScalarType scalar_type_of(MasterFormat format);

/// "weight", "split", "split8", "fp32", "none".
[[nodiscard]] std::string_view name_of(MasterFormat format);

/// The master that a user's word stands for: "auto", "split", "split8", "fp32", "none". Parameters
/// without a rule are updated in fp32 by the caller and need an fp32 master. Throws Error(kValue).
[[nodiscard]] MasterFormat master_named(std::string_view word, DType type, bool has_rule,
                                        std::string_view name);

/// A state_format as a user gives it.
struct FormatWish {
  std::string name = "fp32";
  size_t block_elements = 0;  ///< 0: the format's own default
};
using StateFormatArray = std::array<StateFormat, kMaxStates>;

/// The formats of a rule's states in a parameter of `elements` elements: fp32 in the place of
/// formats with blocks if it has fewer than `min_quantized_elements`. Throws Error(kValue) for a
/// name or block length that does not exist.
[[nodiscard]] StateFormatArray formats_of(const RuleInfo& rule, const FormatWish& wish,
                                          size_t elements, size_t min_quantized_elements);

/// Throws Error(kValue) unless `wish` is fp32: parameters without a native rule have no other
/// state.
void check_generic_format(const FormatWish& wish, std::string_view name);

/// "fp32", or one for each kind of state: "sym8/128, root8/128".
[[nodiscard]] std::string describe(const RuleInfo& rule, const StateFormatArray& formats);

/// "float32[64, 64] on cuda:0".
[[nodiscard]] std::string describe(const at::Tensor& tensor);

/// Every element has its own memory and there are no gaps, in any dimension order.
[[nodiscard]] bool is_dense(const at::Tensor& tensor);

/// size(0) rows of neighbouring elements.
[[nodiscard]] bool is_matrix(const at::Tensor& tensor);

/// Throws Error(kValue) naming the parameter unless it is one.
void check_matrix(const at::Tensor& tensor, std::string_view name);

/// Throws Error unless outboard can update the tensor in place: a strided, dense leaf.
void check_parameter(const at::Tensor& tensor, std::string_view name);

/// The two one-element tensors of a gradient scaler, as the engine wants them; keeps them alive.
class LossScale {
 public:
  /// Undefined tensors are absent. Throws Error(kValue) for tensors of more than one element.
  LossScale(const at::Tensor& loss_scale, const at::Tensor& found_inf);
  [[nodiscard]] const float* loss_scale() const { return pointer(loss_scale_); }
  [[nodiscard]] const float* found_inf() const { return pointer(found_inf_); }
  [[nodiscard]] Memory memory() const;

 private:
  [[nodiscard]] static const float* pointer(const at::Tensor& tensor);
  at::Tensor loss_scale_;
  at::Tensor found_inf_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_TENSOR_TYPES_H_
