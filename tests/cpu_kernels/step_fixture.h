// One parameter with all its arrays in guarded memory, for tests of the CPU step.
#ifndef OUTBOARD_TESTS_CPU_KERNELS_STEP_FIXTURE_H_
#define OUTBOARD_TESTS_CPU_KERNELS_STEP_FIXTURE_H_

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu_kernels/step.h"
#include "support/guarded_buffer.h"
#include "support/numbers.h"
#include "support/reference_step.h"
#include "support/rule_cases.h"

namespace outboard::cpu {

/// What a parameter is made of.
struct Layout {
  const char* name;
  DType weight;
  MasterFormat master;
};

inline constexpr Layout kLayouts[] = {
    {"f32", DType::kF32, MasterFormat::kWeight},
    {"f32+f32", DType::kF32, MasterFormat::kF32},
    {"bf16 split", DType::kBF16, MasterFormat::kSplit},
    {"bf16 split8", DType::kBF16, MasterFormat::kSplit8},
    {"bf16+f32", DType::kBF16, MasterFormat::kF32},
    {"bf16 stochastic", DType::kBF16, MasterFormat::kStochastic},
    {"f16+f32", DType::kF16, MasterFormat::kF32},
};

struct StepCase {
  const RuleInfo* rule;
  std::vector<double> hyper;
  Layout layout;
  DType gradient_type;
  StateFormats formats;
  size_t elements;
  size_t shift = 0;  ///< elements by which the user's arrays are misaligned
};

/// The arrays, drawn from a seed: the same case and seed give the same bytes.
class StepArrays {
 public:
  StepArrays(const StepCase& c, uint64_t seed)
      : gradient_(c.elements * bytes_of(c.gradient_type), c.shift * bytes_of(c.gradient_type)),
        weight_(c.elements * bytes_of(c.layout.weight), c.shift * bytes_of(c.layout.weight)),
        master_(padded_elements(c.elements) * bytes_of(c.layout.master)) {
    testing::Numbers numbers(seed);
    fill(numbers, c.gradient_type, c.elements, gradient_.as<void>());
    update_ = {.rule = c.rule->id,
               .scalars = c.rule->scalars(c.hyper, 3, 0.37),
               .elements = c.elements,
               .rows = testing::test_rows(c.elements),
               .gradient = gradient_.as<void>(),
               .gradient_type = c.gradient_type,
               .weight = weight_.as<void>(),
               .weight_type = c.layout.weight,
               .master_format = c.layout.master,
               .master = bytes_of(c.layout.master) == 0 ? nullptr : master_.as<void>(),
               .random_key = random_key(42, 6),
               .step = 3};
    for (size_t i = 0; i < c.elements; ++i) testing::reference_store(update_, i, numbers.spread());
    add_states(c, numbers);
  }

  [[nodiscard]] const ParameterUpdate& update() const { return update_; }

  /// Every byte of the user's arrays and masters without padding, and of the states with it.
  [[nodiscard]] std::vector<uint8_t> bytes() const {
    std::vector<uint8_t> all = gradient_.values<uint8_t>();
    const auto append = [&all](const std::vector<uint8_t>& more, size_t count) {
      all.insert(all.end(), more.begin(), more.begin() + static_cast<ptrdiff_t>(count));
    };
    append(weight_.values<uint8_t>(), update_.elements * bytes_of(update_.weight_type));
    append(master_.values<uint8_t>(), update_.elements * bytes_of(update_.master_format));
    for (const auto& state : states_) append(state->values<uint8_t>(), state->bytes());
    return all;
  }

  [[nodiscard]] bool is_intact() const {
    bool result = gradient_.is_intact() && weight_.is_intact() && master_.is_intact();
    for (const auto& state : states_) result = result && state->is_intact();
    return result;
  }

 private:
  static void fill(testing::Numbers& numbers, DType type, size_t count, void* out) {
    for (size_t i = 0; i < count; ++i) {
      const float value = type == DType::kF16 ? numbers.spread() : numbers.wild();
      if (type == DType::kF32) static_cast<float*>(out)[i] = value;
      if (type == DType::kBF16) static_cast<uint16_t*>(out)[i] = quant::bf16_nearest(value);
      if (type == DType::kF16) static_cast<uint16_t*>(out)[i] = quant::f16_nearest(value);
    }
  }

  void add_states(const StepCase& c, testing::Numbers& numbers) {
    for (size_t k = 0; k < c.rule->states.size(); ++k) {
      if (!testing::has_state(*c.rule, k, c.hyper)) continue;
      const bool is_signed = c.rule->states[k].is_signed;
      const StateFormat format = testing::format_of(c.rule->states[k], c.formats);
      const size_t elements = state_elements(c.rule->states[k], c.elements, update_.rows);
      const auto make = [&](size_t bytes) {
        states_.push_back(std::make_unique<testing::GuardedBuffer>(bytes));
        return states_.back()->as<void>();
      };
      update_.formats[k] = format;
      update_.states[k] = {make(format.code_bytes(elements)), nullptr, format.block_elements};
      if (format.block_elements > 0) {
        update_.states[k].scales =
            static_cast<float*>(make(format.scale_count(elements) * sizeof(float)));
      }
      std::vector<float> values(round_up(elements, format.unit_elements()));
      for (size_t i = 0; i < elements; ++i) {
        const float value = numbers.spread();
        values[i] = is_signed ? value : value * value;
      }
      testing::reference_encode(format.format, values, elements, {}, 0, update_.states[k]);
    }
  }

  testing::GuardedBuffer gradient_;
  testing::GuardedBuffer weight_;
  testing::GuardedBuffer master_;
  std::vector<std::unique_ptr<testing::GuardedBuffer>> states_;
  ParameterUpdate update_;
};

/// The bytes after one reference step.
inline std::vector<uint8_t> reference_bytes(const StepCase& c, uint64_t seed) {
  const StepArrays arrays(c, seed);
  testing::reference_step(arrays.update());
  return arrays.bytes();
}

}  // namespace outboard::cpu

#endif  // OUTBOARD_TESTS_CPU_KERNELS_STEP_FIXTURE_H_
