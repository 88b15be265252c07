// One step from each golden state of other programs' CPU optimizers, on every target. PyTorch's
// fused kernels must be met bit by bit. Its single-tensor paths have a square root that is not
// correctly rounded, and bitsandbytes forms its averages in another order: they have bounds.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "cpu_kernels/step.h"
#include "support/numbers.h"
#include "support/rule_cases.h"
#include "support/safetensors.h"
#include "support/targets.h"

namespace outboard::cpu {
namespace {

using ::outboard::testing::default_hyper;
using ::outboard::testing::for_each_target;
using ::outboard::testing::has_state;
using ::outboard::testing::Json;
using ::outboard::testing::JsonReader;
using ::outboard::testing::Safetensors;
using ::outboard::testing::same_bits;

constexpr int kSteps = 5;

struct GoldenCase {
  std::string name;
  const RuleInfo* rule;
  std::vector<double> hyper;
  bool is_bf16;
  bool has_exact_weights;
  bool has_state_error;  ///< states are only close: 2^-22 of the values that make them up
  size_t elements;

  /// A momentum of normalised gradients: the inexact root gets into the state, and its error stays
  /// when the terms cancel.
  [[nodiscard]] bool keeps_quotients(std::string_view key) const {
    return rule->name == "RMSprop" && key == "momentum_buffer" && !has_exact_weights;
  }
};

const RuleInfo* find_rule(const std::string& name) {
  try {
    return &rule_named(name);
  } catch (const std::exception&) {
    return nullptr;  // a rule that this library does not have
  }
}

std::vector<double> read_hyper(const RuleInfo& rule, const Json& arguments) {
  std::vector<double> hyper = default_hyper(rule);
  for (size_t i = 0; i < hyper.size(); ++i) {
    const std::string key(rule.hyper_parameters[i].key);
    const std::string group = key.substr(0, key.find('.'));
    if (!arguments.has(group)) continue;
    const Json& value = arguments.at(group);
    hyper[i] = group == key ? value.number : value.items.at(key.back() - '0').number;
  }
  return hyper;
}

std::vector<GoldenCase> golden_cases(const Safetensors& file) {
  std::vector<GoldenCase> cases;
  for (const auto& [name, text] : file.metadata()) {
    if (text.text.empty() || text.text[0] != '{') continue;
    const Json description = JsonReader(text.text).read();
    const RuleInfo* rule = find_rule(description.at("class").text);
    if (rule == nullptr) continue;
    const Json arguments = JsonReader(description.at("args").text).read();
    cases.push_back(
        {name, rule, read_hyper(*rule, arguments), description.at("dtype").text == "torch.bfloat16",
         arguments.has("fused") && arguments.at("fused").number != 0,
         description.has("state_error"), static_cast<size_t>(description.at("n").number)});
  }
  return cases;
}

/// Values of an array as fp32, whatever it is stored as.
std::vector<float> load(const Safetensors& file, const std::string& name) {
  if (file.dtype(name) == "F32") return file.values<float>(name);
  std::vector<float> values;
  for (const uint16_t code : file.values<uint16_t>(name)) {
    values.push_back(quant::f32_from_bf16(code));
  }
  return values;
}

std::vector<float> flushed(std::vector<float> values) {
  for (float& value : values) value = exact::flush_subnormal(value);
  return values;
}

/// A state array of the case's format, padded to whole tiles.
struct State {
  size_t elements;
  std::vector<float> f32;
  std::vector<uint16_t> bf16;

  State(std::vector<float> values, bool is_bf16) : elements(values.size()), f32(std::move(values)) {
    f32.resize(padded_elements(elements));
    if (!is_bf16) return;
    for (const float value : f32) bf16.push_back(quant::bf16_nearest(value));
  }
  [[nodiscard]] StateArray array() {
    return {bf16.empty() ? static_cast<void*>(f32.data()) : bf16.data(), nullptr};
  }
  [[nodiscard]] std::vector<float> values() const {
    std::vector<float> result(f32.begin(), f32.begin() + static_cast<ptrdiff_t>(elements));
    for (size_t i = 0; i < elements && !bf16.empty(); ++i) {
      result[i] = quant::f32_from_bf16(bf16[i]);
    }
    return result;
  }
};

void expect_weights(const GoldenCase& c, const std::vector<float>& before,
                    const std::vector<float>& expected, const std::vector<float>& actual) {
  if (c.has_exact_weights) {
    EXPECT_TRUE(same_bits(expected, actual));
    return;
  }
  const bool has_quotients = std::ranges::any_of(
      c.rule->states, [&](const StateInfo& state) { return c.keeps_quotients(state.key); });
  const float factor = has_quotients ? 8 : 1;
  for (size_t i = 0; i < expected.size(); ++i) {
    const float largest = std::max(std::abs(expected[i]), std::abs(before[i]));
    const float ulp = std::nextafter(largest, INFINITY) - largest;
    const float update = std::abs(expected[i] - before[i]);
    ASSERT_NEAR(expected[i], actual[i], factor * (ulp + 0x1p-22f * update)) << i;
  }
}

void expect_states(bool is_exact, const std::vector<float>& before,
                   const std::vector<float>& expected, const std::vector<float>& actual) {
  if (is_exact) {
    EXPECT_TRUE(same_bits(flushed(expected), actual));
    return;
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const float size = std::abs(expected[i]) + std::abs(before[i]);
    ASSERT_NEAR(expected[i], actual[i], 0x1p-22f * size) << i;
  }
}

void check_step(const Safetensors& file, const GoldenCase& c, int step) {
  const std::string now = std::to_string(step);
  const std::string last = std::to_string(step - 1);
  const std::vector<float> before = load(file, c.name + "/p" + last);
  std::vector<float> gradient = load(file, c.name + "/g" + now);
  std::vector<float> master = before;
  std::vector<uint16_t> weight(c.elements);
  std::vector<State> states;
  std::vector<std::vector<float>> old_states;
  ParameterUpdate update = {};
  update.rule = c.rule->id;
  update.scalars = c.rule->scalars(c.hyper, step, 1.0);
  update.elements = c.elements;
  update.gradient = gradient.data();
  update.weight = master.data();
  if (c.is_bf16) {  // bf16 weights as PyTorch keeps them: rounded to nearest, without a master
    update.weight = weight.data();
    update.weight_type = DType::kBF16;
    update.master_format = MasterFormat::kF32;
    update.master = master.data();
  }
  states.reserve(kMaxStates);
  for (size_t k = 0; k < c.rule->states.size(); ++k) {
    if (!has_state(*c.rule, k, c.hyper)) continue;
    const std::string key = c.name + "/" + std::string(c.rule->states[k].key);
    old_states.push_back(step == 1 ? std::vector<float>(c.elements) : load(file, key + last));
    states.emplace_back(old_states.back(), c.is_bf16);
    update.states[k] = states.back().array();
    update.formats[k] = state_format(c.is_bf16 ? Format::kBF16 : Format::kF32);
  }
  ResolvedUpdate(update).run(0, c.elements);
  std::vector<float> after = master;
  for (size_t i = 0; i < c.elements && c.is_bf16; ++i) after[i] = quant::f32_from_bf16(weight[i]);
  expect_weights(c, before, load(file, c.name + "/p" + now), after);
  size_t next = 0;
  for (size_t k = 0; k < c.rule->states.size(); ++k) {
    if (!has_state(*c.rule, k, c.hyper)) continue;
    const std::string key = c.name + "/" + std::string(c.rule->states[k].key) + now;
    SCOPED_TRACE(key);
    const bool is_exact = !c.has_state_error && !c.keeps_quotients(c.rule->states[k].key);
    expect_states(is_exact, old_states[next], load(file, key), states[next].values());
    ++next;
  }
}

void check_file(const Safetensors& file, size_t least_cases) {
  const std::vector<GoldenCase> cases = golden_cases(file);
  ASSERT_GE(cases.size(), least_cases);
  for_each_target([&] {
    for (const GoldenCase& c : cases) {
      for (int step = 1; step <= kSteps; ++step) {
        SCOPED_TRACE(c.name + " step " + std::to_string(step));
        check_step(file, c, step);
      }
    }
  });
}

TEST(Golden, EveryStepOfPyTorchIsReproducedOnEveryTarget) {
  check_file(Safetensors::golden("torch"), 21);
}

TEST(Golden, EveryStepOfLionIsReproducedOnEveryTarget) {
  check_file(Safetensors::golden("lion"), 1);
}

TEST(Golden, EveryStepOfAdEMAMixAndItsWarmUpIsReproducedOnEveryTarget) {
  check_file(Safetensors::golden("ademamix"), 1);
}

}  // namespace
}  // namespace outboard::cpu
