// Every rule's SIMD kernel on every target gives the bits of the scalar formula, for awkward values
// and any alignment.
#include "cpu_kernels/rule_kernel.h"

#include <gtest/gtest.h>

#include <limits>

#include "support/catalogue.h"
#include "support/guarded_buffer.h"
#include "support/numbers.h"
#include "support/rule_cases.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::for_each_target;
using ::outboard::testing::GuardedBuffer;
using ::outboard::testing::has_state;
using ::outboard::testing::Numbers;
using ::outboard::testing::rule_cases;
using ::outboard::testing::RuleCase;
using ::outboard::testing::same_bits;

constexpr size_t kElements = 3 * kTileElements;

struct Arrays {
  std::vector<float> gradient;
  std::vector<float> weight;
  std::vector<std::vector<float>> states;
};

Arrays draw(const RuleInfo& rule, const std::vector<double>& hyper, uint64_t seed) {
  Numbers numbers(seed);
  Arrays arrays = {
      numbers.many(kElements, &Numbers::wild), numbers.many(kElements, &Numbers::wild), {}};
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  arrays.gradient[0] = infinity;
  arrays.gradient[1] = -infinity;
  arrays.gradient[2] = nan;
  arrays.weight[3] = nan;
  arrays.weight[4] = infinity;
  for (size_t k = 0; k < rule.states.size(); ++k) {
    if (!has_state(rule, k, hyper)) continue;
    arrays.states.resize(k + 1);
    arrays.states[k] = numbers.many(kElements, &Numbers::wild);
    if (!rule.states[k].is_signed) {
      for (float& value : arrays.states[k]) value = std::abs(value);
    }
    arrays.states[k][5 + k] = infinity;
    arrays.states[k][9 + k] = nan;
  }
  return arrays;
}

/// The arrays after one run of `kernel`, each array misaligned by `shift` elements and guarded.
Arrays run(RuleKernel kernel, const RuleScalars& scalars, const Arrays& before, size_t shift) {
  GuardedBuffer gradient(before.gradient, shift);
  GuardedBuffer weight(before.weight, shift);
  std::vector<std::unique_ptr<GuardedBuffer>> states;
  RuleTile tile = {gradient.as<float>(), weight.as<float>(), {}, kElements};
  for (size_t k = 0; k < before.states.size(); ++k) {
    states.push_back(std::make_unique<GuardedBuffer>(before.states[k], shift));
    if (!before.states[k].empty()) tile.state[k] = states[k]->as<float>();
  }
  kernel(scalars, tile);
  Arrays after = {gradient.values<float>(), weight.values<float>(), {}};
  EXPECT_TRUE(gradient.is_intact() && weight.is_intact());
  for (const auto& state : states) {
    EXPECT_TRUE(state->is_intact());
    after.states.push_back(state->values<float>());
  }
  return after;
}

void expect_same(const Arrays& expected, const Arrays& actual) {
  EXPECT_TRUE(same_bits(expected.gradient, actual.gradient)) << "gradient";
  EXPECT_TRUE(same_bits(expected.weight, actual.weight)) << "weight";
  for (size_t k = 0; k < expected.states.size(); ++k) {
    EXPECT_TRUE(same_bits(expected.states[k], actual.states[k])) << "state " << k;
  }
}

template <class Rule>
class RuleKernelTest : public ::testing::Test {};
TYPED_TEST_SUITE(RuleKernelTest, ::outboard::testing::AllRules,
                 ::outboard::testing::CatalogueNames);

TYPED_TEST(RuleKernelTest, EqualsTheScalarFormulaOnEveryTarget) {
  const RuleInfo& rule = rule_named(TypeParam::kName);
  uint64_t seed = 100;
  for (const RuleCase& rule_case : rule_cases(rule)) {
    SCOPED_TRACE(rule_case.name);
    const Arrays before = draw(rule, rule_case.hyper, ++seed);
    for (const int64_t step : {int64_t{1}, int64_t{7}}) {
      const RuleScalars scalars = rule.scalars(rule_case.hyper, step, 0.37);
      const Arrays expected = run(&run_scalar_rule<TypeParam>, scalars, before, 0);
      for_each_target(
          [&] { expect_same(expected, run(rule_kernel(rule.id), scalars, before, seed % 5)); });
    }
    if (this->HasFailure()) return;
  }
}

}  // namespace
}  // namespace outboard::cpu
