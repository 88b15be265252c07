// The libtorch face against torch::optim on the CPU, with torch's habits: groups, schedulers,
// closures, clipping, accumulation, other optimizer classes, errors.
#include <gmock/gmock.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/schedulers/step_lr.h>

#include <cmath>
#include <limits>

#include "outboard/error.h"
#include "training.h"

namespace outboard {
namespace {

using torch::optim::AdagradOptions;
using torch::optim::AdamOptions;
using torch::optim::AdamWOptions;
using torch::optim::OptimizerParamGroup;
using torch::optim::RMSpropOptions;
using torch::optim::SGDOptions;

class CPUOffloadOptimizerTest : public OnEveryPlace {};
OUTBOARD_ON_EVERY_PLACE(CPUOffloadOptimizerTest);

template <class TorchOptimizer, class Options>
void expect_like_torch(Place place, const Options& base) {
  const Training ours(place);
  const Training theirs(Place::kInPlace);
  CPUOffloadOptimizer optimizer(ours.parameters, base, options_for(place));
  TorchOptimizer reference(theirs.parameters, base);
  ours.run(optimizer, 0, 8);
  theirs.run(reference, 0, 8);
  expect_close(ours.parameters, theirs.parameters);
}

TEST_P(CPUOffloadOptimizerTest, AdamWIsTorchsAdamW) {
  expect_like_torch<torch::optim::AdamW>(GetParam(), AdamWOptions(1e-2).weight_decay(0.1));
  expect_like_torch<torch::optim::AdamW>(GetParam(), AdamWOptions(1e-2).amsgrad(true));
}

TEST_P(CPUOffloadOptimizerTest, AdamIsTorchsAdam) {
  expect_like_torch<torch::optim::Adam>(GetParam(), AdamOptions(1e-2).weight_decay(0.1));
}

TEST_P(CPUOffloadOptimizerTest, SgdIsTorchsSgd) {
  expect_like_torch<torch::optim::SGD>(GetParam(), SGDOptions(1e-2));
  expect_like_torch<torch::optim::SGD>(GetParam(), SGDOptions(1e-2).momentum(0.9).nesterov(true));
}

TEST_P(CPUOffloadOptimizerTest, AdagradIsTorchsAdagrad) {
  expect_like_torch<torch::optim::Adagrad>(GetParam(), AdagradOptions(1e-2).lr_decay(0.1));
  expect_like_torch<torch::optim::Adagrad>(
      GetParam(), AdagradOptions(1e-2).initial_accumulator_value(0.5).weight_decay(0.1));
}

TEST_P(CPUOffloadOptimizerTest, RmspropIsTorchsRmsprop) {
  expect_like_torch<torch::optim::RMSprop>(GetParam(), RMSpropOptions(1e-2).alpha(0.9));
  expect_like_torch<torch::optim::RMSprop>(
      GetParam(), RMSpropOptions(1e-3).centered(true).momentum(0.9).weight_decay(0.1));
}

template <class Options>
void expect_the_same_bits_everywhere(Place place, const Options& base) {
  const Training ours(place);
  const Training reference(Place::kInPlace);
  CPUOffloadOptimizer optimizer(ours.parameters, base, options_for(place));
  CPUOffloadOptimizer in_place(reference.parameters, base);
  ours.run(optimizer, 0, 5);
  reference.run(in_place, 0, 5);
  expect_equal(ours.parameters, reference.parameters, c10::demangle(typeid(Options).name()));
}

TEST_P(CPUOffloadOptimizerTest, RulesThatTorchLacksHaveTheSameBitsEverywhere) {
  expect_the_same_bits_everywhere(GetParam(), LionOptions(1e-2).weight_decay(0.1));
  expect_the_same_bits_everywhere(GetParam(), AdEMAMixOptions(1e-2).alpha(2).t_alpha(3).t_beta3(4));
  expect_the_same_bits_everywhere(GetParam(), LAMBOptions(1e-2).weight_decay(0.1));
  expect_the_same_bits_everywhere(GetParam(), LARSOptions(1.0).max_unorm(0.01));
}

TEST_P(CPUOffloadOptimizerTest, TheSlowAverageWarmsUp) {
  const Training fast(GetParam());
  const Training slow(GetParam());
  CPUOffloadOptimizer at_once(fast.parameters, AdEMAMixOptions(1e-2), options_for(GetParam()));
  CPUOffloadOptimizer late(slow.parameters, AdEMAMixOptions(1e-2).t_beta3(100),
                           options_for(GetParam()));
  fast.run(at_once, 0, 1);
  slow.run(late, 0, 1);
  const auto size = [](CPUOffloadOptimizer& optimizer, const Training& training) {
    return optimizer.state_of(training.parameters[0]).at("exp_avg_slow").abs().max().item<double>();
  };
  EXPECT_NEAR(size(at_once, fast), 0.75e-4, 1e-7);  // 1 - beta3 of the largest gradient, 6 / 8
  // 1% of the way between the half-lives of beta1 and beta3.
  EXPECT_NEAR(size(late, slow), 0.0068249, 1e-6);
}

TEST_P(CPUOffloadOptimizerTest, Bf16HasTheSameBitsEverywhere) {
  const Training ours(GetParam(), at::kBFloat16);
  const Training reference(Place::kInPlace, at::kBFloat16);
  CPUOffloadOptions options = options_for(GetParam());
  options.state_format = "bf16";
  CPUOffloadOptimizer optimizer(ours.parameters, AdamWOptions(1e-2), options);
  CPUOffloadOptimizer in_place(reference.parameters, AdamWOptions(1e-2), {.state_format = "bf16"});
  ours.run(optimizer, 0, 5);
  reference.run(in_place, 0, 5);
  expect_equal(ours.parameters, reference.parameters, "bf16");
}

TEST_P(CPUOffloadOptimizerTest, SchedulersSetTheLearningRate) {
  const Training ours(GetParam());
  const Training theirs(Place::kInPlace);
  CPUOffloadOptimizer optimizer(ours.parameters, AdamWOptions(1e-2), options_for(GetParam()));
  torch::optim::AdamW reference(theirs.parameters, AdamWOptions(1e-2));
  torch::optim::StepLR schedule(optimizer, 2, 0.1);
  torch::optim::StepLR reference_schedule(reference, 2, 0.1);
  for (int64_t step = 0; step < 6; ++step) {
    ours.run(optimizer, step, step + 1);
    theirs.run(reference, step, step + 1);
    schedule.step();
    reference_schedule.step();
  }
  EXPECT_LT(optimizer.param_groups()[0].options().get_lr(), 1e-3);
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(),
            reference.param_groups()[0].options().get_lr());
  expect_close(ours.parameters, theirs.parameters);
}

TEST_P(CPUOffloadOptimizerTest, GroupsHaveTheirOwnOptionsAtEveryStep) {
  const Training ours(GetParam());
  const Training theirs(Place::kInPlace);
  const auto groups_of = [](const Training& training) {
    const auto& p = training.parameters;
    return std::vector<OptimizerParamGroup>{
        {{p[0]}, std::make_unique<AdamWOptions>(AdamWOptions(1e-1).weight_decay(0))},
        OptimizerParamGroup({p[1]})};
  };
  CPUOffloadOptimizer optimizer(groups_of(ours), AdamWOptions(1e-2), options_for(GetParam()));
  torch::optim::AdamW reference(groups_of(theirs), AdamWOptions(1e-2));
  ours.run(optimizer, 0, 2);
  theirs.run(reference, 0, 2);
  optimizer.add_param_group(OptimizerParamGroup({ours.parameters[2]}));
  reference.add_param_group(OptimizerParamGroup({theirs.parameters[2]}));
  optimizer.param_groups()[1].options().set_lr(3e-2);
  reference.param_groups()[1].options().set_lr(3e-2);
  ours.run(optimizer, 2, 4);
  theirs.run(reference, 2, 4);
  expect_close(ours.parameters, theirs.parameters);
}

TEST_P(CPUOffloadOptimizerTest, AGroupAddedThroughTheBaseClassIsTakenUp) {
  const Training ours(GetParam());
  CPUOffloadOptimizer optimizer({ours.parameters[0]}, SGDOptions(1), options_for(GetParam()));
  torch::optim::Optimizer& base = optimizer;
  base.add_param_group(OptimizerParamGroup({ours.parameters[1]}));
  const std::vector<at::Tensor> before = copies(ours.parameters);
  ours.backward(0);
  optimizer.step();
  EXPECT_FALSE(at::equal(ours.parameters[1], before[1]));
}

TEST_P(CPUOffloadOptimizerTest, AClosureGivesTheLoss) {
  const Training training(GetParam());
  CPUOffloadOptimizer optimizer(training.parameters, SGDOptions(0.5), options_for(GetParam()));
  const at::Tensor before = training.parameters[0].detach().clone();
  const torch::Tensor loss = optimizer.step([&] {
    optimizer.zero_grad();
    const torch::Tensor sum = training.parameters[0].sum();
    sum.backward();
    return sum;
  });
  EXPECT_EQ(loss.item<double>(), before.sum().item<double>());
  EXPECT_TRUE(at::equal(training.parameters[0].detach(), before - 0.5));
}

TEST_P(CPUOffloadOptimizerTest, ClippingScalesTheStep) {
  const Training training(GetParam());
  CPUOffloadOptimizer optimizer({training.parameters[1]}, SGDOptions(1), options_for(GetParam()));
  const at::Tensor before = training.parameters[1].detach().clone();
  training.parameters[1].sum().backward();
  const double norm = std::sqrt(300.0);
  EXPECT_NEAR(optimizer.clip_grad_norm_(norm / 4), norm, 1e-4);
  optimizer.step();
  EXPECT_TRUE(at::allclose(training.parameters[1].detach(), before - 0.25, 1e-5, 1e-6));
  optimizer.zero_grad();
  training.parameters[1].sum().backward();
  optimizer.step();  // the wish was for one step only
  EXPECT_TRUE(at::allclose(training.parameters[1].detach(), before - 1.25, 1e-5, 1e-6));
  EXPECT_EQ(optimizer.stats().step.steps, 2);
}

TEST_P(CPUOffloadOptimizerTest, OffloadedGradientsAddUp) {
  const Training training(GetParam());
  CPUOffloadOptions options = options_for(GetParam());
  options.offload_gradients = true;
  CPUOffloadOptimizer optimizer(training.parameters, SGDOptions(1), options);
  const std::vector<at::Tensor> before = copies(training.parameters);
  {
    const auto accumulation = optimizer.accumulate();
    training.backward(0);
  }
  training.backward(1);
  optimizer.step();
  for (size_t i = 0; i < before.size(); ++i) {
    const at::Tensor sum = Training::pattern(before[i].sizes(), static_cast<int64_t>(i)) +
                           Training::pattern(before[i].sizes(), 3 + static_cast<int64_t>(i));
    EXPECT_TRUE(at::equal(training.parameters[i].detach().cpu(), before[i].cpu() - sum)) << i;
  }
}

TEST_P(CPUOffloadOptimizerTest, ZeroGradForgetsOffloadedGradients) {
  const Training training(GetParam());
  CPUOffloadOptions options = options_for(GetParam());
  options.offload_gradients = true;
  CPUOffloadOptimizer optimizer(training.parameters, SGDOptions(1), options);
  const std::vector<at::Tensor> before = copies(training.parameters);
  training.backward(0);
  optimizer.zero_grad();
  optimizer.step();
  expect_equal(training.parameters, before, "after zero_grad");
}

TEST_P(CPUOffloadOptimizerTest, ANonFiniteGradientChangesNothing) {
  const Training training(GetParam());
  CPUOffloadOptimizer optimizer(training.parameters, AdamWOptions(1), options_for(GetParam()));
  const std::vector<at::Tensor> before = copies(training.parameters);
  training.backward(0, std::numeric_limits<double>::infinity());
  optimizer.step();
  expect_equal(training.parameters, before, "after Inf");
  EXPECT_EQ(optimizer.stats().step.skipped_steps, 1);
  EXPECT_TRUE(optimizer.state_of(training.parameters[0]).empty());
}

TEST_P(CPUOffloadOptimizerTest, StateHasTorchsNames) {
  const Training training(GetParam());
  CPUOffloadOptimizer optimizer(training.parameters, AdamWOptions(1e-2), options_for(GetParam()));
  training.run(optimizer, 0, 3);
  const auto state = optimizer.state_of(training.parameters[0]);
  EXPECT_EQ(state.at("step").item<double>(), 3);
  EXPECT_EQ(state.at("exp_avg").sizes(), training.parameters[0].sizes());
  EXPECT_EQ(state.at("exp_avg_sq").sizes(), training.parameters[0].sizes());
  const bool is_in_place = GetParam() == Place::kInPlace;
  EXPECT_EQ(optimizer.placement_of(training.parameters[0]), is_in_place ? "cpu" : "host");
  EXPECT_EQ(optimizer.placement_of(training.parameters[2]), is_in_place ? "cpu" : "resident");
}

template <class TorchOptimizer>
void expect_generic_like_torch(Place place) {
  const Training ours(place);
  const Training theirs(Place::kInPlace);
  CPUOffloadOptimizer optimizer(
      ours.parameters,
      [](std::vector<torch::Tensor> tensors) {
        return std::make_unique<TorchOptimizer>(std::move(tensors));
      },
      options_for(place));
  TorchOptimizer reference(theirs.parameters);
  torch::optim::StepLR schedule(optimizer, 1, 0.5);
  torch::optim::StepLR reference_schedule(reference, 1, 0.5);
  for (int64_t step = 0; step < 4; ++step) {
    ours.run(optimizer, step, step + 1);
    theirs.run(reference, step, step + 1);
    schedule.step();
    reference_schedule.step();
  }
  expect_close(ours.parameters, theirs.parameters);
}

// A factory's class runs as it is, even where its options would choose a native rule.
TEST_P(CPUOffloadOptimizerTest, AClassFromAFactoryRunsOnHostMasters) {
  expect_generic_like_torch<torch::optim::RMSprop>(GetParam());
  expect_generic_like_torch<torch::optim::Adagrad>(GetParam());
}

template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(CPUOffloadOptimizerErrors, NameWhatIsWrong) {
  const Training training(Place::kInPlace);
  const auto& p = training.parameters;
  using Tensors = std::vector<torch::Tensor>;
  EXPECT_THAT(message_of([] { CPUOffloadOptimizer(Tensors{}, AdamWOptions()); }),
              testing::HasSubstr("no parameters"));
  EXPECT_THAT(message_of([&] {
                CPUOffloadOptimizer(Tensors{p[0], p[0]}, AdamWOptions());
              }),
              testing::HasSubstr("given twice"));
  EXPECT_THAT(message_of([&] { CPUOffloadOptimizer(p, AdamWOptions(-1)); }),
              testing::HasSubstr("lr"));
  EXPECT_THAT(message_of([&] { CPUOffloadOptimizer(p, AdamWOptions(), {.state_format = "fp7"}); }),
              testing::HasSubstr("fp7"));
  EXPECT_THAT(message_of([&] { CPUOffloadOptimizer(p, torch::optim::LBFGSOptions()); }),
              testing::HasSubstr("LBFGS"));
  EXPECT_THAT(message_of([&] { CPUOffloadOptimizer(p, AdamWOptions(), {.threads = -1}); }),
              testing::HasSubstr("threads is -1"));
}

TEST(CPUOffloadOptimizerErrors, ARefusedGroupIsNotAdded) {
  const Training training(Place::kInPlace);
  CPUOffloadOptimizer optimizer({training.parameters[0]}, AdamWOptions());
  EXPECT_THAT(
      message_of([&] { optimizer.add_param_group(OptimizerParamGroup({training.parameters[0]})); }),
      testing::HasSubstr("given twice"));
  EXPECT_THAT(
      message_of([&] {
        optimizer.add_param_group({{training.parameters[1]}, std::make_unique<SGDOptions>(1e-2)});
      }),
      testing::HasSubstr("SGD"));
  EXPECT_EQ(optimizer.param_groups().size(), 1u);
  training.run(optimizer, 0, 2);
  EXPECT_EQ(optimizer.stats().step.steps, 2);
}

}  // namespace
}  // namespace outboard
