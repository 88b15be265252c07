// What an engine holds: bytes by kind against the table per element, resident memory, and what is
// left when memory or registration is refused or the engine goes while copies are under way.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstddef>
#include <fstream>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "tests/offload/support/overlapped_trainer.h"
#include "tests/offload/support/plain_trainer.h"
#include "tests/offload/support/trial.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::OverlappedTrainer;
using testing::Trial;
using testing::WatchedDevice;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kHasShadowMemory = true;
#else
constexpr bool kHasShadowMemory = false;
#endif

size_t resident_bytes() {
  size_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

std::vector<double> adamw_hyper() {
  std::vector<double> hyper;
  for (const HyperParameter& parameter : rule_named("AdamW").hyper_parameters) {
    hyper.push_back(parameter.default_value);
  }
  return hyper;
}

ParameterSpec adamw(DType type, MasterFormat master, std::string_view state, size_t elements,
                    void* weight) {
  const StateFormats formats = state_formats_named(state);
  return {.name = "weight",
          .weight = weight,
          .type = type,
          .elements = elements,
          .rule = rule_named("AdamW").id,
          .master_format = master,
          .formats = {formats.signed_state, formats.unsigned_state},
          .hyper = adamw_hyper()};
}

size_t host_sum(const MemoryStats& memory) {
  return memory.host_weights + memory.host_masters + memory.host_state + memory.host_gradients +
         memory.host_accumulators;
}

// Bytes per element on the host: the weight's image, the master, the states, and the gradient
// store.
TEST(EngineMemory, MatchesTheTable) {
  constexpr size_t kElements = 64 * kTileElements;
  using enum MasterFormat;
  const std::tuple<DType, MasterFormat, const char*, size_t> kRows[] = {
      {DType::kBF16, kSplit, "fp32", 12 + 2},     {DType::kBF16, kSplit, "bf16", 8 + 2},
      {DType::kBF16, kSplit8, "fp32", 11 + 2},    {DType::kBF16, kSplit8, "bf16", 7 + 2},
      {DType::kBF16, kStochastic, "bf16", 6 + 2}, {DType::kBF16, kStochastic, "fp32", 10 + 2},
      {DType::kBF16, kF32, "fp32", 12 + 2 + 2},   {DType::kF32, kWeight, "fp32", 4 + 8 + 4},
      {DType::kF32, kWeight, "bf16", 4 + 4 + 4},  {DType::kF16, kF32, "fp32", 4 + 2 + 8 + 2},
  };
  std::vector<float> weight(kElements);
  for (const auto& [type, master, state, bytes] : kRows) {
    SCOPED_TRACE(std::string(name_of(type)) + " " + state);
    Engine engine({}, make_simulated_device({}));
    engine.add_parameters({adamw(type, master, state, kElements, weight.data())}, nullptr);
    EXPECT_EQ(host_sum(engine.memory()), bytes * kElements);
    EXPECT_EQ(engine.memory().host_weights, bytes_of(type) * kElements);
    EXPECT_EQ(engine.memory().host_masters, bytes_of(master) * kElements);
    EXPECT_EQ(engine.memory().host_gradients, bytes_of(type) * kElements);
    EXPECT_EQ(engine.memory().device_state, 0u);
    EXPECT_EQ(engine.memory().device_workspace, norm_segments(kElements) * sizeof(float));
  }
}

TEST(EngineMemory, OddLengthsCostAtMostOneTilePerArray) {
  std::vector<float> weight(1001);
  Engine engine({}, make_simulated_device({}));
  engine.add_parameters({adamw(DType::kBF16, MasterFormat::kSplit, "fp32", 1001, weight.data())},
                        nullptr);
  EXPECT_EQ(host_sum(engine.memory()), 14 * padded_elements(1001));
}

TEST(EngineMemory, ResidentStateLiesOnTheDevice) {
  std::vector<float> weight(kTileElements);
  Engine engine({}, make_simulated_device({}));
  ParameterSpec spec =
      adamw(DType::kF32, MasterFormat::kWeight, "fp32", kTileElements, weight.data());
  spec.placement = Placement::kResident;
  engine.add_parameters({spec}, nullptr);
  EXPECT_EQ(host_sum(engine.memory()), 0u);
  EXPECT_EQ(engine.memory().device_state, 8 * kTileElements);
  EXPECT_EQ(engine.view(0).state_memory, Memory::kDevice);
}

// Steps with accumulation on the host until everything that comes into being later is there.
void step(Engine& engine, std::vector<std::vector<uint16_t>>& gradients) {
  for (size_t p = gradients.size(); p-- > 0;) {
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
      engine.gradient_ready(p, {gradients[p].data(), nullptr}, nullptr);
    }
  }
  EXPECT_TRUE(engine.begin_step({.hyper = {adamw_hyper()}}, nullptr));
  engine.finish_step(nullptr);
}

TEST(EngineMemory, ResidentSetIsTheTablesSum) {
  if (kHasShadowMemory) GTEST_SKIP() << "shadow memory counts too";
  constexpr size_t kElements = size_t{8} << 20;
  std::vector<uint16_t> weight(kElements, 0x3F80);
  const auto device = make_simulated_device({});
  const size_t before = resident_bytes();
  Engine engine({.threads = 2}, device);
  engine.add_parameters(
      {adamw(DType::kBF16, MasterFormat::kSplit, "fp32", kElements, weight.data())}, nullptr);
  const size_t grown = resident_bytes() - before;
  const size_t sum = host_sum(engine.memory());
  EXPECT_EQ(sum, 14 * kElements);
  constexpr size_t kThreadsAndSums = size_t{2} << 20;
  EXPECT_LE(grown, sum + sum / 20 + engine.memory().host_staging + kThreadsAndSums);
  EXPECT_GE(grown, sum) << "memory is there from the start, not touched by the first step";
}

TEST(EngineMemory, StaysAsItIsOverAThousandSteps) {
  std::vector<std::vector<uint16_t>> weights(3, std::vector<uint16_t>(9000, 0x3F80));
  std::vector<std::vector<uint16_t>> gradients(3, std::vector<uint16_t>(9000, 0x3A80));
  Engine engine({.offload_gradients = true,
                 .threads = 2,
                 .chunk_elements = 4096,
                 .slot_bytes = 16384,
                 .slots = 2},
                make_simulated_device({}));
  std::vector<ParameterSpec> specs;
  for (auto& weight : weights) {
    specs.push_back(
        adamw(DType::kBF16, MasterFormat::kSplit, "fp32", weight.size(), weight.data()));
  }
  engine.add_parameters(std::move(specs), nullptr);
  for (int i = 0; i < 100; ++i) step(engine, gradients);
  engine.synchronize();
  const MemoryStats before = engine.memory();
  const size_t resident_before = resident_bytes();
  for (int i = 0; i < 1000; ++i) step(engine, gradients);
  engine.synchronize();
  EXPECT_EQ(host_sum(engine.memory()), host_sum(before));
  EXPECT_EQ(engine.memory().host_staging, before.host_staging);
  EXPECT_EQ(engine.stats().steps, 1100);
  if (kHasShadowMemory) return;
  EXPECT_LE(resident_bytes(), resident_before + (size_t{1} << 20));
}

MemoryStats memory_after_failed_add(Engine& engine, std::vector<ParameterSpec> specs) {
  EXPECT_ANY_THROW(engine.add_parameters(std::move(specs), nullptr));
  EXPECT_EQ(engine.parameter_count(), 1u);
  return engine.memory();
}

bool same(const MemoryStats& a, const MemoryStats& b) {
  return host_sum(a) == host_sum(b) && a.host_staging == b.host_staging &&
         a.host_pinned == b.host_pinned && a.device_state == b.device_state &&
         a.device_workspace == b.device_workspace;
}

TEST(EngineMemory, AFailingDeviceAllocatorLeavesTheEngineAsItWas) {
  std::vector<float> weight(5000, 1);
  ParameterSpec host = adamw(DType::kF32, MasterFormat::kWeight, "fp32", 5000, weight.data());
  ParameterSpec resident = host;
  resident.placement = Placement::kResident;
  const auto device = make_simulated_device({});
  for (int failing = 1; failing < 4; ++failing) {  // sums, first and second resident
    int left = 1000;
    Engine engine({}, device, [&](size_t bytes) {
      if (--left == 0) throw std::bad_alloc();
      return device->allocate(bytes);
    });
    engine.add_parameters({host}, nullptr);
    const MemoryStats before = engine.memory();
    left = failing;
    EXPECT_TRUE(same(memory_after_failed_add(engine, {host, resident, resident}), before));
    left = 1000;
    EXPECT_EQ(engine.add_parameters({host, resident}, nullptr), 1u);
  }
}

TEST(EngineMemory, RefusedHostMemoryLeavesTheEngineAsItWas) {
  if (kHasShadowMemory) GTEST_SKIP() << "sanitizers map their own memory";
  std::vector<float> weight(5000, 1);
  ParameterSpec small = adamw(DType::kF32, MasterFormat::kWeight, "fp32", 5000, weight.data());
  ParameterSpec huge = small;
  huge.elements = size_t{1} << 40;
  Engine engine({}, make_simulated_device({}));
  engine.add_parameters({small}, nullptr);
  const MemoryStats before = engine.memory();
  rlimit old = {};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &old), 0);
  rlimit tight = old;
  tight.rlim_cur = size_t{64} << 30;
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &tight), 0);
  const MemoryStats after = memory_after_failed_add(engine, {small, huge});
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &old), 0);
  EXPECT_TRUE(same(after, before));
  EXPECT_EQ(engine.add_parameters({small}, nullptr), 1u);
}

Trial trial_with_accumulation(uint64_t seed) {
  return {.seed = seed,
          .offload_gradients = true,
          .accumulation = 2,
          .parameters = testing::parameters_of_every_kind(seed)};
}

TEST(EngineMemory, RefusedRegistrationIsOneWarning) {
  const Trial trial = trial_with_accumulation(3);
  const auto fake = make_simulated_device({.max_delay_microseconds = 30, .poison_targets = true});
  const auto device = std::make_shared<WatchedDevice>(fake, [](Call call, const Event*) {
    if (call == Call::kPin) fail(ErrorKind::kDevice, "Test", "pinning is refused; go on");
  });
  OverlappedTrainer trainer(trial, fake, device, fake->make_stream());
  EXPECT_TRUE(testing::same_outcome(testing::PlainTrainer(trial).run(), trainer.run()));
  EXPECT_EQ(trainer.engine().memory().host_pinned, 0u);
  const std::vector<std::string> warnings = trainer.engine().take_warnings();
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("RLIMIT_MEMLOCK"), std::string::npos);
  EXPECT_TRUE(trainer.engine().take_warnings().empty());
}

// Memory is given back only when no copy touches it, whatever was under way.
TEST(EngineMemory, NothingIsUnderWayWhenMemoryGoes) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Trial trial = trial_with_accumulation(seed);
    const auto fake = make_simulated_device(
        {.seed = seed, .max_delay_microseconds = 400, .poison_targets = true});
    int unpinned = 0, early = 0;
    std::weak_ptr<WatchedDevice> watched;
    auto device = std::make_shared<WatchedDevice>(fake, [&](Call call, const Event*) {
      if (call != Call::kUnpin) return;
      ++unpinned;
      const auto alive = watched.lock();
      if (alive != nullptr && !alive->is_idle()) ++early;
    });
    watched = device;
    {
      OverlappedTrainer trainer(trial, fake, device, fake->make_stream());
      for (int step = 0; step < static_cast<int>(seed) / 2; ++step) trainer.train(step);
      trainer.run_micro_batch(3, 0);
      if (seed % 2 == 0) {
        EXPECT_TRUE(trainer.begin(0));
        trainer.engine().finish_step(trainer.stream());
      }
    }
    EXPECT_GT(unpinned, 0);
    EXPECT_EQ(early, 0) << "seed " << seed;
  }
}

}  // namespace
}  // namespace outboard
