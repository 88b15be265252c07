// Engine::set_formats: what the states are afterwards, and where their memory comes from and goes.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/formats.h"

namespace outboard {
namespace {

using testing::formats_named;

constexpr size_t kElements = 5000;
constexpr size_t kWide = 2 * 5120 * sizeof(float);  // two states, whole tiles of 256

/// One AdamW parameter in host memory, or resident on a simulated device.
struct Trial {
  explicit Trial(Placement placement, std::string_view format)
      : weight(kElements),
        engine({}, placement == Placement::kResident ? make_simulated_device({}) : nullptr) {
    ParameterSpec spec{
        .name = "weight",
        .weight = weight.data(),
        .memory = placement == Placement::kResident ? Memory::kDevice : Memory::kHost,
        .elements = kElements,
        .placement = placement,
        .rule = rule_named("AdamW").id,
        .formats = formats_named(format)};
    for (const HyperParameter& parameter : rule_named("AdamW").hyper_parameters) {
      spec.hyper.push_back(parameter.default_value);
    }
    engine.add_parameters({spec}, nullptr);
  }

  std::vector<float> weight;
  Engine engine;
};

void expect_zeros(const ParameterView& view) {
  for (size_t i = 0; i < 2; ++i) {
    const StateFormat& format = view.spec->formats[i];
    const auto* codes = static_cast<const std::byte*>(view.states[i].codes);
    for (const std::byte byte : std::span(codes, format.code_bytes(kElements))) {
      ASSERT_EQ(byte, std::byte{0});
    }
    for (const float scale : std::span(view.states[i].scales, format.scale_count(kElements))) {
      ASSERT_EQ(scale, 0.0f);
    }
  }
}

void fill(const ParameterView& view) {
  for (size_t i = 0; i < 2; ++i) {
    const StateFormat& format = view.spec->formats[i];
    std::memset(view.states[i].codes, 0x3C, format.code_bytes(kElements));
    if (view.states[i].scales == nullptr) continue;
    std::memset(view.states[i].scales, 0x3C, format.scale_count(kElements) * sizeof(float));
  }
}

TEST(EngineFormats, StatesAreZerosInTheNewFormat) {
  for (const Placement placement : {Placement::kHost, Placement::kResident}) {
    Trial trial(placement, "fp32");
    for (const char* format : {"8bit", "bf16", "fp32", "sym8"}) {
      fill(trial.engine.view(0));
      trial.engine.set_formats(0, formats_named(format));
      const ParameterView view = trial.engine.view(0);
      EXPECT_EQ(view.spec->formats, formats_named(format));
      EXPECT_EQ(view.states[0].block_elements, formats_named(format)[0].block_elements);
      expect_zeros(view);
      EXPECT_EQ(view.states[2].codes, nullptr);
    }
  }
}

TEST(EngineFormats, HostMemoryIsUsedAgain) {
  Trial trial(Placement::kHost, "fp32");
  const auto held_now = [&] {
    const MemoryStats memory = trial.engine.memory();
    return memory.host_state + memory.host_spare;
  };
  ASSERT_EQ(held_now(), kWide);
  trial.engine.set_formats(0, formats_named("8bit"));
  trial.engine.set_formats(0, formats_named("bf16"));
  EXPECT_EQ(trial.engine.memory().host_state, kWide / 2);
  EXPECT_EQ(held_now(), kWide);
  for (int i = 0; i < 2; ++i) trial.engine.set_formats(0, formats_named("fp32"));
  const size_t held = held_now();
  for (int i = 0; i < 8; ++i) {
    trial.engine.set_formats(0, formats_named("8bit"));
    trial.engine.set_formats(0, formats_named("fp32"));
  }
  EXPECT_LE(held_now(), held + kWide);
}

TEST(EngineFormats, DeviceMemoryGoesBack) {
  Trial trial(Placement::kResident, "8bit");
  const size_t narrow = trial.engine.memory().device_state;
  trial.engine.set_formats(0, formats_named("fp32"));
  EXPECT_EQ(trial.engine.memory().device_state, kWide);
  trial.engine.set_formats(0, formats_named("8bit"));
  EXPECT_EQ(trial.engine.memory().device_state, narrow);
}

}  // namespace
}  // namespace outboard
