// One pass over a run of one parameter on the CPU: load the gradient, decode master and state,
// apply the rule, encode, round to the weight's type. The only function through which the host
// updates weights.
#ifndef OUTBOARD_CPU_KERNELS_STEP_H_
#define OUTBOARD_CPU_KERNELS_STEP_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "cpu_kernels/fused.h"
#include "cpu_kernels/rule_kernel.h"
#include "cpu_kernels/transfer.h"
#include "outboard/rule.h"
#include "outboard/types.h"
#include "quant/codec.h"

namespace outboard::cpu {

/// Everything about one parameter's update that stays constant over one step. Pointers are to
/// element 0 of the parameter; non-owning. `weight` and `gradient` hold exactly `elements` elements
/// at any alignment; `master` (as `master_format` says, or null) and
/// states are padded to whole tiles.
struct ParameterUpdate {
  RuleId rule;
  RuleScalars scalars;
  size_t elements = 0;
  size_t rows = 0;  ///< of the parameter as a matrix, for rules that keep row and column means
  const void* gradient = nullptr;
  DType gradient_type = DType::kF32;
  void* weight = nullptr;
  DType weight_type = DType::kF32;
  MasterFormat master_format = MasterFormat::kWeight;
  void* master = nullptr;
  std::array<StateArray, kMaxStates> states = {};  ///< null codes: the state does not exist
  std::array<StateFormat, kMaxStates> formats = {};
  RandomKey random_key;
  uint32_t step = 0;  ///< the parameter's own step count, 1 for the first
};

/// A ParameterUpdate whose kernels have been looked up; cheap to copy, used by many threads at
/// once.
class ResolvedUpdate {
 public:
  explicit ResolvedUpdate(const ParameterUpdate& update);

  /// Updates elements [first, last). `first` is a multiple of unit_elements(); `last` too, unless
  /// it is the parameter's element count. Calls on disjoint ranges may run at the same time and
  /// never change a bit of the result.
  void run(size_t first, size_t last) const;

  /// Shows `look` every tile of [first, last), which is cut as for run(), and stores nothing: the
  /// index of the tile's first element and how many of its elements exist. A tile may be the
  /// parameter's own arrays and must not be written to.
  using Look = std::function<void(const RuleTile& tile, size_t first, size_t count)>;
  void inspect(size_t first, size_t last, const Look& look) const;

  /// Ranges must be cut at multiples of this many elements: one tile, or the longest block of the
  /// state formats.
  [[nodiscard]] size_t unit_elements() const { return unit_elements_; }

 private:
  struct Run;
  struct Scratch;
  struct Tail;
  [[nodiscard]] RuleTile load(const Run& run, Scratch& scratch) const;
  void update_run(const Run& run, Scratch& scratch) const;
  void update_tail(size_t first, Scratch& scratch) const;
  void take_factors();
  [[nodiscard]] Run copy_tail(size_t first, Tail& tail) const;
  [[nodiscard]] Run run_at(size_t first, size_t count) const;
  [[nodiscard]] RandomContext random(uint32_t stream) const;

  ParameterUpdate update_;
  size_t unit_elements_ = kTileElements;
  bool is_in_place_ =
      true;  ///< everything is fp32 where it lies: the rule runs on whole ranges at once
  Transfer transfer_;
  RuleKernel rule_;
  std::span<const float> rows_;  ///< of a rule that keeps row and column means; else empty
  std::span<const float> columns_;
  FactorScalars factors_ = {};
  size_t joined_ = 0;            ///< the state in whose place such a rule finds products of both
  FusedKernel fused_ = nullptr;  ///< null: the passes do everything
  std::array<Codec, kMaxStates> codecs_ = {};
};

}  // namespace outboard::cpu

#endif  // OUTBOARD_CPU_KERNELS_STEP_H_
