// What a rule must provide, and the run-time view of the catalogue that the engine and the faces
// read. A rule header (include/outboard/rules/<stem>.h) defines one struct:
//
//   struct Lion {
//     static constexpr std::string_view kName = "Lion";
//     static constexpr std::array kHyperParameters{...};  // HyperParameter, in torch's order
//     static constexpr std::array kStates{...};           // StateInfo, in torch's order
//     // What the formula needs, constant over a step:
//     template <class T> struct Scalars { T ...; };
//     // nullptr, or what is wrong with a combination of values and what to do:
//     static const char* check(std::span<const double> hyper);
//     template <class T>
//     static OUTBOARD_HD Scalars<T> scalars(std::span<const double> hyper, int64_t step,
//                                           double gradient_scale);
//     template <class T>
//     static OUTBOARD_HD void update(const Scalars<T>&, T gradient, T& weight, T* state);
//   };
//
// A rule may say which states' square roots it forms anyway, so that formats that store roots need
// not take them again:
//
//     static constexpr uint32_t kRoots = 1 << 1;  // bit k: the root of state k, as stored
//     template <class T>
//     static OUTBOARD_HD void update(const Scalars<T>&, T gradient, T& weight, T* state, T* roots);
//
// A rule with options that cost time in every element may name the common case, for which the GPU
// then has kernels without the others' branches. Roots and quotients are asked of `arithmetic`
// (exact::Arithmetic, or a form that is exact for most operands and says when it was not):
//
//     static constexpr uint32_t kUsualStates = 0b011;  // bit k: state k exists in that case
//     static OUTBOARD_HD bool is_usual(const Scalars<float>&);
//     template <class Arithmetic>
//     static OUTBOARD_HD void update_usual(const Scalars<float>&, float gradient, float& weight,
//                                          float* state, float* roots, Arithmetic& arithmetic);
//
// `scalars` is formed on the host, or on the device from numbers that lie there: both must give the
// same bits, so it calls exact::power(), log() and exp() (outboard/scalar_math.h) in the C
// library's place, and roots and quotients of exact::.
//
// `update` takes the gradient as stored (it multiplies by the gradient scale itself), the decoded
// master as `weight`, and stores flushed states. In float it is the CUDA code and defines every
// bit; in double it is the test oracle.
//
// A rule that needs norms of the whole parameter (LAMB, LARS) adds two functions:
//
//     template <class T>
//     static OUTBOARD_HD T measured(const Scalars<T>&, T gradient, T weight, const T* state);
//     template <class T>
//     static OUTBOARD_HD Scalars<T> with_norms(Scalars<T>, double weight_squares,
//                                              double update_squares);
//
// A first pass then sums the squares of the decoded weight and of measured() over the parameter, in
// the fixed order of segment sums and storing nothing else; with_norms() turns both sums into the
// scalars of the second pass, which is `update` over every element.
//
// A rule that keeps a state as row and column means of the parameter as a matrix (AdamWFactored)
// has one state of shape kRows and one of kColumns behind it, and adds two other functions:
//
//     static OUTBOARD_HD FactorScalars factor_scalars(const Scalars<float>&);
//     template <class T>
//     static OUTBOARD_HD Scalars<T> with_row_mean(Scalars<T>, double row_mean);
//
// A first pass then moves both vectors towards the means of the squared gradient (rules/factors.h)
// and gives the rows' mean to the scalars. The second pass is `update` again, which finds the
// element's product of both at the place of the rows and leaves it alone.
#ifndef OUTBOARD_RULE_H_
#define OUTBOARD_RULE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace outboard {

/// One hyper-parameter of a rule. `key` is torch's name in a parameter group; `betas.0` is item 0
/// of the tuple `betas`. Flags are 0 or 1. Valid values v satisfy minimum <= v and v <= maximum (v
/// < maximum where `is_open`).
struct HyperParameter {
  std::string_view key;
  double default_value;
  double minimum;
  double maximum;
  bool is_open = false;
  bool is_flag = false;
};

/// What a state holds one value of: each element, or, in fp32, each row or column of the parameter
/// as a matrix.
enum class StateShape : uint8_t { kElements, kRows, kColumns };

/// One state tensor of a rule. It exists while hyper-parameter `needed_by` (index, or -1 for
/// always) is not 0.
struct StateInfo {
  std::string_view key;  ///< torch's name, e.g. "exp_avg"
  bool is_signed;        ///< false: never negative, like a second moment
  int needed_by = -1;
  StateShape shape = StateShape::kElements;
};

/// Values that a state holds of a parameter of `elements` elements in `rows` rows.
[[nodiscard]] constexpr size_t state_elements(const StateInfo& state, size_t elements,
                                              size_t rows) {
  if (state.shape == StateShape::kElements) return elements;
  if (state.shape == StateShape::kRows) return rows;
  return rows == 0 ? 0 : elements / rows;
}

/// Whether a rule needs norms of a whole parameter before its first element is updated.
template <class Rule>
concept NeedsNorms = requires(const typename Rule::template Scalars<float>& scalars) {
  Rule::template with_norms<float>(scalars, 1.0, 1.0);
};

/// What the first pass over a factored state needs of a step's scalars, and what it adds to them.
struct FactorScalars {
  float gradient_scale;
  float one_minus_beta;  ///< by which the means move
  double row_mean;       ///< of the moved rows
};

/// Whether a rule keeps row and column means, which are moved before the first element is updated.
template <class Rule>
concept NeedsFactors = requires(const typename Rule::template Scalars<float>& scalars) {
  Rule::template with_row_mean<float>(scalars, 1.0);
};

/// A rule's `Scalars<float>`, type-erased so that tables and GPU launches need no template. At most
/// 80 bytes.
class RuleScalars {
 public:
  template <class Scalars>
  static RuleScalars of(const Scalars& scalars) {
    static_assert(std::is_trivially_copyable_v<Scalars> && sizeof(Scalars) <= sizeof(bytes_));
    RuleScalars result;
    std::memcpy(result.bytes_, &scalars, sizeof(Scalars));
    return result;
  }
  template <class Scalars>
  [[nodiscard]] Scalars as() const {
    Scalars scalars;
    std::memcpy(&scalars, bytes_, sizeof(Scalars));
    return scalars;
  }
  friend bool operator==(const RuleScalars& a, const RuleScalars& b) {
    return std::memcmp(a.bytes_, b.bytes_, sizeof(a.bytes_)) == 0;
  }

 private:
  alignas(8) unsigned char bytes_[80] = {};
};

/// The catalogue's order is the value: enumerators are the types named in rules.def.
enum class RuleId : uint8_t {
#define OUTBOARD_RULE(type, stem) k##type,
#include "outboard/rules.def"
#undef OUTBOARD_RULE
};

inline constexpr size_t kRuleCount = 0
#define OUTBOARD_RULE(type, stem) +1
#include "outboard/rules.def"
#undef OUTBOARD_RULE
    ;

/// Run-time description of one rule.
struct RuleInfo {
  RuleId id;
  std::string_view name;
  std::span<const HyperParameter> hyper_parameters;
  std::span<const StateInfo> states;
  /// nullptr, or a sentence saying which combination is wrong and what to do. Ranges are checked by
  /// check_hyper().
  const char* (*check)(std::span<const double> hyper);
  /// Scalars of step `step` (1 for the first), hyper in catalogue order, computed in fp64 and
  /// rounded once.
  RuleScalars (*scalars)(std::span<const double> hyper, int64_t step, double gradient_scale);
  /// Null, or: the rule needs norms, and these are the scalars that the sums of squares of a whole
  /// parameter give (see cpu_kernels/measure.h).
  RuleScalars (*with_norms)(const RuleScalars& scalars, double weight_squares,
                            double update_squares) = nullptr;
  /// Null, or: the rule keeps row and column means (see cpu_kernels/factors.h).
  FactorScalars (*factor_scalars)(const RuleScalars& scalars) = nullptr;
  RuleScalars (*with_row_mean)(const RuleScalars& scalars, double row_mean) = nullptr;

  /// A first pass looks at the whole parameter before its first element is updated.
  [[nodiscard]] constexpr bool needs_whole() const {
    return with_norms != nullptr || factor_scalars != nullptr;
  }
};

/// The rule's description; the reference stays valid for the life of the program.
[[nodiscard]] const RuleInfo& rule_info(RuleId id);

/// Looks a rule up by its name ("AdamW"). Throws Error(kValue) that lists the known names.
[[nodiscard]] const RuleInfo& rule_named(std::string_view name);

/// Throws Error(kValue) naming the hyper-parameter, its value and range unless every value is valid
/// (NaN never is).
void check_hyper(const RuleInfo& rule, std::span<const double> hyper, std::string_view who);

}  // namespace outboard

#endif  // OUTBOARD_RULE_H_
