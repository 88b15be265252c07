// The exact form of a low-bit state in state dicts: three plain tensors whose names say which state
// in which format, for example
//
//   exp_avg.sym8.128.codes   uint8, flat: one code a byte, or two; an unused half is 0
//   exp_avg.sym8.128.scales  float32, flat: one per block of 128 elements
//   exp_avg.sym8.128.layout  int64 [2, dims]: sizes and strides; codes follow the memory's order
//
// Knows tensors and formats; no engine, no device arrays.
#ifndef OUTBOARD_OFFLOAD_TORCH_PACKED_STATE_H_
#define OUTBOARD_OFFLOAD_TORCH_PACKED_STATE_H_

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "offload/state_codes.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"

namespace outboard {

/// One parameter of a state dict: torch's names, plus "step" and "master".
using TensorMap = std::vector<std::pair<std::string, at::Tensor>>;

/// One state of one parameter in its exact form.
class PackedState {
 public:
  /// Adds the three tensors of state `key` to `map`. `codes` and `scales` hold at least what is
  /// stored, flat; they are aliased, unless the last byte's other half has to be cleared.
  static void append(std::string_view key, const StateFormat& format, const at::Tensor& codes,
                     const at::Tensor& scales, const at::Tensor& parameter, TensorMap& map);

  /// The states that `map` holds in this form. Throws Error(kValue) for a tensor missing, an
  /// unknown state or format, wrong types or lengths, and content that no optimizer writes.
  /// `name`: of the parameter, for messages.
  [[nodiscard]] static std::vector<PackedState> find_all(const TensorMap& map, const RuleInfo& rule,
                                                         const at::Tensor& parameter,
                                                         std::string_view name);
  /// Whether a key of a state dict entry belongs to this form.
  [[nodiscard]] static bool is_part(std::string_view key);

  [[nodiscard]] size_t state() const { return state_; }
  [[nodiscard]] const StateFormat& format() const { return format_; }
  /// Whether the elements lie in the order of `parameter`.
  [[nodiscard]] bool has_order_of(const at::Tensor& parameter) const;
  [[nodiscard]] StoredState stored() const;
  /// fp32 on the host, in the saved sizes and strides.
  [[nodiscard]] at::Tensor decoded() const;

 private:
  struct Name;
  void add(const Name& part, const at::Tensor& value);
  [[nodiscard]] std::string flaw(const at::Tensor& parameter) const;

  size_t state_ = 0;
  StateFormat format_;
  at::Tensor codes_;
  at::Tensor scales_;
  at::Tensor layout_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_PACKED_STATE_H_
