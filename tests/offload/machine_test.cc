// Measuring a machine: every figure is there and plausible, the update measured is the one asked
// for, nothing is left behind.
#include "offload/planning/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "offload/planning/cost_model.h"
#include "offload/support/watched_device.h"
#include "outboard/error.h"

namespace outboard {
namespace {

using ::outboard::testing::Call;
using ::outboard::testing::Fault;
using ::outboard::testing::WatchedDevice;
using ::testing::HasSubstr;

const UpdateToMeasure kEightBit = {.state_format = "8bit"};

/// Small enough for a sanitizer on two cores.
MachineOptions small_options(std::vector<UpdateToMeasure> updates = {}) {
  return {.threads = 2,
          .updates = std::move(updates),
          .copy_bytes = size_t{1} << 20,
          .update_elements = (size_t{1} << 18) + 77};
}

double seconds_of(const Machine& machine, const std::string& name) {
  const auto found = std::ranges::find(machine.updates, name, &UpdateSpeed::name);
  return found == machine.updates.end() ? 0 : found->seconds_per_element;
}

TEST(Machine, MeasuresLinkAndHostOnTheSimulatedDevice) {
  const Machine machine = measure_machine(make_simulated_device({}), small_options({kEightBit}));
  EXPECT_GT(machine.link_down, 1e6);
  EXPECT_GT(machine.link_up, 1e6);
  EXPECT_GT(machine.link_duplex, 1e6);
  EXPECT_GT(machine.host_bandwidth, 1e6);
  EXPECT_EQ(machine.threads, std::min(2, measure_machine(nullptr, small_options()).threads));
  EXPECT_GT(machine.device_bandwidth, 1e6);
  EXPECT_EQ(machine.flops, 0);
}

TEST(Machine, SlowCopiesGiveALowBandwidth) {
  // Four copies of 1 MiB, each delayed by up to 5 ms: some 0.4 GB/s; without delays a host copies
  // tens of GB/s.
  const MachineOptions options = small_options();
  const Machine slow =
      measure_machine(make_simulated_device({.seed = 3, .max_delay_microseconds = 5000}), options);
  EXPECT_LT(slow.link_down, 2e9);
  EXPECT_LT(slow.link_up, 2e9);
  EXPECT_LT(slow.link_duplex, 2e9);
}

TEST(Machine, PinsWhatItCopiesAndLeavesNothingBehind) {
  std::atomic<int> pinned = 0;
  std::atomic<int> unpinned = 0;
  const auto device =
      std::make_shared<WatchedDevice>(make_simulated_device({}), [&](Call call, const Event*) {
        pinned += call == Call::kPin;
        unpinned += call == Call::kUnpin;
      });
  (void)measure_machine(device, small_options());
  EXPECT_GT(pinned, 0);
  EXPECT_EQ(pinned, unpinned);
  EXPECT_TRUE(device->is_idle());
}

TEST(Machine, FailingCopiesEndBeforeTheirMemoryGoes) {
  for (const Call failing : {Call::kCopyToHost, Call::kCopyToDevice, Call::kCopyOnDevice}) {
    Fault fault(failing);
    bool was_idle = true;
    std::shared_ptr<WatchedDevice> device;
    device = std::make_shared<WatchedDevice>(
        make_simulated_device({.seed = 1, .max_delay_microseconds = 2000}),
        [&](Call call, const Event*) {
          if (call == Call::kUnpin) was_idle &= device->is_idle();
          fault.see(call);
        });
    fault.arm(6);
    EXPECT_THROW((void)measure_machine(device, small_options()), Error);
    EXPECT_TRUE(was_idle);
    EXPECT_TRUE(fault.has_struck());
  }
}

TEST(Machine, TakesUnpinnedMemoryWherePinningIsRefused) {
  const auto device =
      std::make_shared<WatchedDevice>(make_simulated_device({}), [](Call call, const Event*) {
        if (call == Call::kPin) fail(ErrorKind::kDevice, "test", "refused; go on");
      });
  EXPECT_GT(measure_machine(device, small_options()).link_duplex, 0);
}

TEST(Machine, NamesTheUpdatesThatItMeasured) {
  const Machine machine = measure_machine(
      nullptr,
      small_options(
          {kEightBit,
           {.rule = RuleId::kLion, .state_format = "bf16", .master = MasterFormat::kStochastic},
           {.state_format = "fp32", .type = DType::kF16, .master = MasterFormat::kF32}}));
  EXPECT_GT(seconds_of(machine, "AdamW 8bit split"), 0);
  EXPECT_GT(seconds_of(machine, "Lion bf16 stochastic"), 0);
  EXPECT_GT(seconds_of(machine, "AdamW fp32 fp32"), 0);
  EXPECT_EQ(machine.updates.size(), 3u);
  EXPECT_EQ(machine.link_down, 0) << "there is no device";
}

TEST(Machine, AgreesWithThePlanner) {
  const Machine machine = measure_machine(make_simulated_device({}), small_options({kEightBit}));
  PlanRequest request;
  request.parameters = {{.elements = 1 << 20, .state_bytes = state_bytes(RuleId::kAdamW, "8bit")}};
  request.update = update_name("AdamW", "8bit", MasterFormat::kSplit);
  request.placement = Placement::kHost;
  request.schedule = Schedule::kAtStep;
  const Plan plan = make_plan(request, machine);
  EXPECT_DOUBLE_EQ(plan.prediction.cpu_s, seconds_of(machine, request.update) * (1 << 20));
}

TEST(Machine, CountsStateBytesWithScales) {
  EXPECT_DOUBLE_EQ(state_bytes(RuleId::kAdamW, "fp32"), 8);
  EXPECT_DOUBLE_EQ(state_bytes(RuleId::kAdamW, "bf16"), 4);
  EXPECT_DOUBLE_EQ(state_bytes(RuleId::kAdamW, "8bit"), 2 + 2 * 4.0 / 128);
  EXPECT_DOUBLE_EQ(state_bytes(RuleId::kLion, "8bit"), 1 + 4.0 / 128);
  EXPECT_DOUBLE_EQ(state_bytes(RuleId::kSGD, "fp32"), 0) << "plain SGD keeps nothing";
}

TEST(Machine, PlansForTheParametersOfAnEngine) {
  const RuleInfo& rule = rule_info(RuleId::kAdamW);
  ParameterSpec spec{.name = "weight",
                     .type = DType::kBF16,
                     .elements = 1 << 20,
                     .rule = rule.id,
                     .master_format = MasterFormat::kSplit};
  for (const HyperParameter& hyper : rule.hyper_parameters) {
    spec.hyper.push_back(hyper.default_value);
  }
  const StateFormats formats = state_formats_named("8bit");
  spec.formats = {formats.signed_state, formats.unsigned_state};
  const ParameterToPlan parameter = parameter_to_plan(spec);
  EXPECT_EQ(parameter.elements, spec.elements);
  EXPECT_EQ(parameter.type, DType::kBF16);
  EXPECT_EQ(parameter.master, MasterFormat::kSplit);
  EXPECT_DOUBLE_EQ(parameter.state_bytes, state_bytes(RuleId::kAdamW, "8bit"));
  spec.rule.reset();
  EXPECT_EQ(parameter_to_plan(spec).state_bytes, 0);
}

TEST(Machine, RefusesWhatCannotBeMeasured) {
  const auto message = [](const MachineOptions& options) -> std::string {
    try {
      (void)measure_machine(nullptr, options);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      return error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_THAT(message(small_options({{.state_format = "9bit"}})), HasSubstr("9bit"));
  EXPECT_THAT(message(small_options({{.rule = RuleId::kLAMB}})), HasSubstr("LAMB needs norms"));
  MachineOptions nothing = small_options();
  nothing.copy_bytes = 0;
  EXPECT_THAT(message(nothing), HasSubstr("copy_bytes is 0"));
}

}  // namespace
}  // namespace outboard
