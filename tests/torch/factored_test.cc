// factored_second_moment through the libtorch face: which parameters have row and column means, the
// bits of outboard::Engine, and what is refused.
#include <gmock/gmock.h>

#include <filesystem>

#include "outboard/engine.h"
#include "outboard/error.h"
#include "outboard/torch/low_bit_optimizer.h"
#include "training.h"

namespace outboard {
namespace {

using ::testing::HasSubstr;
using torch::optim::AdamOptions;
using torch::optim::AdamWOptions;
using torch::optim::OptimizerParamGroup;

constexpr int kSteps = 4;
const std::vector<std::vector<int64_t>> kShapes = {{67, 33}, {8, 5, 3, 3}, {1, 9}, {300}, {}};

AdamWOptions base() { return AdamWOptions(1e-2).weight_decay(0.1); }

std::vector<at::Tensor> make_parameters(Place place) {
  std::vector<at::Tensor> parameters;
  for (const auto& sizes : kShapes) {
    const at::Tensor values = Training::pattern(sizes, static_cast<int64_t>(parameters.size()));
    parameters.push_back(
        values.to(place == Place::kGpu ? at::kCUDA : at::kCPU).requires_grad_(true));
  }
  return parameters;
}

at::Tensor gradient(int64_t step, size_t parameter) {
  return Training::pattern(kShapes[parameter], 3 * step + static_cast<int64_t>(parameter));
}

void run(CPUOffloadOptimizer& optimizer, std::vector<at::Tensor>& parameters) {
  for (int64_t step = 0; step < kSteps; ++step) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      parameters[i].mutable_grad() = gradient(step, i).to(parameters[i].device()).clone();
    }
    optimizer.step();
    optimizer.zero_grad();
  }
  optimizer.synchronize();
}

/// The same steps without tensors.
class Reference {
 public:
  explicit Reference(const std::string& format) : engine_({}, nullptr) {
    const StateFormats named = state_formats_named(format);
    std::vector<ParameterSpec> specs;
    for (size_t i = 0; i < weights_.size(); ++i) {
      const at::Tensor& weight = weights_[i];
      const bool is_matrix = weight.dim() >= 2;
      ParameterSpec spec{.name = "w",
                         .weight = weight.data_ptr(),
                         .memory = Memory::kHost,
                         .elements = static_cast<size_t>(weight.numel()),
                         .rule = is_matrix ? RuleId::kAdamWFactored : RuleId::kAdamW,
                         .hyper = kHyper};
      if (is_matrix) spec.rows = static_cast<size_t>(weight.size(0));
      spec.formats[0] = named.signed_state;
      if (!is_matrix) spec.formats[1] = named.unsigned_state;
      specs.push_back(spec);
    }
    engine_.add_parameters(specs, nullptr);
    for (int64_t step = 0; step < kSteps; ++step) take_step(step);
    engine_.synchronize();
  }

  [[nodiscard]] const std::vector<at::Tensor>& weights() const { return weights_; }
  [[nodiscard]] std::vector<float> means(size_t parameter, size_t state, int64_t count) const {
    const auto* values = static_cast<const float*>(engine_.view(parameter).states[state].codes);
    return {values, values + count};
  }

 private:
  void take_step(int64_t step) {
    std::vector<at::Tensor> gradients;
    for (size_t i = 0; i < weights_.size(); ++i) {
      gradients.push_back(gradient(step, i));
      engine_.gradient_ready(i, {.data = gradients[i].data_ptr(), .owner = {}}, nullptr);
    }
    ASSERT_TRUE(engine_.begin_step({.hyper = {kHyper}}, nullptr));
    engine_.finish_step(nullptr);
  }

  inline static const std::vector<double> kHyper = {1e-2, 0.9, 0.999, 1e-8, 0.1, 0, 0};
  std::vector<at::Tensor> weights_ = make_parameters(Place::kInPlace);
  Engine engine_;
};

void expect_reference(CPUOffloadOptimizer& optimizer, std::vector<at::Tensor>& parameters,
                      const std::string& format) {
  run(optimizer, parameters);
  const Reference reference(format);
  expect_equal(parameters, reference.weights(), format);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto state = optimizer.state_of(parameters[i]);
    ASSERT_EQ(state.contains("exp_avg_sq"), parameters[i].dim() < 2) << i;
    if (parameters[i].dim() < 2) continue;
    const at::Tensor rows = state.at("exp_avg_sq_row").cpu();
    const at::Tensor columns = state.at("exp_avg_sq_col").cpu();
    ASSERT_EQ(rows.sizes(), at::IntArrayRef({kShapes[i][0]}));
    ASSERT_EQ(columns.sizes(), at::IntArrayRef({parameters[i].numel() / kShapes[i][0]}));
    EXPECT_TRUE(at::equal(rows, at::tensor(reference.means(i, 1, rows.numel())))) << i;
    EXPECT_TRUE(at::equal(columns, at::tensor(reference.means(i, 2, columns.numel())))) << i;
  }
}

class FactoredTest : public OnEveryPlace {};
OUTBOARD_ON_EVERY_PLACE(FactoredTest);

TEST_P(FactoredTest, OffloadedStepsHaveTheBitsOfTheEngines) {
  for (const char* format : {"fp32", "8bit"}) {
    for (const Placement placement : {Placement::kHost, Placement::kStreamed}) {
      CPUOffloadOptions options = options_for(GetParam());
      options.state_format = format;
      options.min_quantized_elements = 0;
      options.factored_second_moment = true;
      options.placement = placement;
      options.min_stream_elements = 16;
      std::vector<at::Tensor> parameters = make_parameters(GetParam());
      CPUOffloadOptimizer optimizer(parameters, base(), options);
      expect_reference(optimizer, parameters, format);
    }
  }
}

TEST_P(FactoredTest, LowBitStepsHaveTheBitsOfTheEngines) {
  LowBitOptions options{.min_quantized_elements = 0, .factored_second_moment = true};
  options.simulated_device = options_for(GetParam()).simulated_device;
  std::vector<at::Tensor> parameters = make_parameters(GetParam());
  LowBitOptimizer optimizer(parameters, base(), options);
  expect_reference(optimizer, parameters, "8bit");
}

template <class Make>
std::string refusal(const Make& make) {
  try {
    make();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    return error.what();
  }
  return "";
}

const CPUOffloadOptions kFactored{.factored_second_moment = true};

TEST(Factored, IsForAdamWWithoutAmsgrad) {
  const std::vector<at::Tensor> parameters = make_parameters(Place::kInPlace);
  EXPECT_THAT(refusal([&] { CPUOffloadOptimizer(parameters, AdamOptions(), kFactored); }),
              HasSubstr("factored_second_moment is for AdamW, and the optimizer is Adam;"));
  const CPUOffloadOptimizer::Factory factory = [](std::vector<torch::Tensor> tensors) {
    return std::make_unique<torch::optim::AdamW>(std::move(tensors));
  };
  EXPECT_THAT(refusal([&] { CPUOffloadOptimizer(parameters, factory, kFactored); }),
              HasSubstr("the optimizer has no native rule;"));
  const AdamWOptions amsgrad = base().amsgrad(true);
  EXPECT_THAT(refusal([&] { CPUOffloadOptimizer(parameters, amsgrad, kFactored); }),
              HasSubstr("amsgrad keeps a maximum"));
}

TEST(Factored, EveryGroupIsCheckedAndEveryStep) {
  std::vector<at::Tensor> parameters = make_parameters(Place::kInPlace);
  CPUOffloadOptimizer optimizer({parameters[0]}, base(), kFactored);
  const OptimizerParamGroup group({parameters[3]},
                                  std::make_unique<AdamWOptions>(base().amsgrad(true)));
  EXPECT_THAT(refusal([&] { optimizer.add_param_group(group); }), HasSubstr("amsgrad"));
  EXPECT_EQ(optimizer.param_groups().size(), 1U);
  static_cast<AdamWOptions&>(optimizer.param_groups()[0].options()).amsgrad(true);
  parameters[0].mutable_grad() = gradient(0, 0);
  EXPECT_THAT(refusal([&] { optimizer.step(); }), HasSubstr("amsgrad"));
}

TEST(Factored, WhatIsNoMatrixInMemoryKeepsASecondMoment) {
  at::Tensor image =
      at::ones({8, 4, 3, 3}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_(true);
  CPUOffloadOptimizer optimizer({image}, base(), kFactored);
  image.mutable_grad() = at::ones_like(image);
  optimizer.step();
  EXPECT_TRUE(optimizer.state_of(image).contains("exp_avg_sq"));
}

TEST(Factored, TheTwoKindsOfStateDoNotLoadIntoEachOther) {
  const std::string path =
      (std::filesystem::path(::testing::TempDir()) / "outboard_factored.pt").string();
  for (const bool is_saved : {false, true}) {
    std::vector<at::Tensor> parameters = make_parameters(Place::kInPlace);
    CPUOffloadOptimizer saved(parameters, base(), {.factored_second_moment = is_saved});
    run(saved, parameters);
    saved.save_checkpoint(path);
    CPUOffloadOptimizer other(parameters, base(), {.factored_second_moment = !is_saved});
    EXPECT_THAT(refusal([&] { other.load_checkpoint(path); }),
                HasSubstr("factored_second_moment that was saved"));
    EXPECT_TRUE(other.state_of(parameters[3]).empty());
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace outboard
