// Trains two made-up parameters through the C++ face and writes a checkpoint and the weights, so
// that Python's tests can compare and exchange files:
//
//   checkpoint_tool OPTIMIZER DTYPE FIRST LAST INPUT OUTPUT
//
// Steps 0 to FIRST run in an optimizer that is then thrown away; the one that runs FIRST to LAST
// starts from INPUT ("-": from nothing). The weights go to standard output, one a line.
#include <ATen/ATen.h>

#include <cstdio>
#include <exception>
#include <string>

#include "outboard/torch/cpu_offload_optimizer.h"

namespace {

using outboard::CPUOffloadOptimizer;

at::Tensor pattern(at::IntArrayRef sizes, int64_t start) {
  const int64_t count = c10::multiply_integers(sizes);
  const at::Tensor numbers = (at::arange(count, at::kLong) * 7 + start * 5).remainder(13) - 6;
  return (numbers.to(at::kFloat) / 8).view(sizes);
}

std::unique_ptr<CPUOffloadOptimizer> make(std::string name,
                                          const std::vector<at::Tensor>& parameters) {
  outboard::CPUOffloadOptions options{.min_quantized_elements = 0,
                                      .min_offload_elements = 0,
                                      .simulated_device = outboard::SimulatedDeviceOptions()};
  if (name.ends_with("8bit")) {
    options.state_format = "8bit";
    name.resize(name.size() - 4);
  }
  if (name.ends_with("Factored")) {
    options.factored_second_moment = true;
    name.resize(name.size() - 8);
  }
  const auto with = [&](auto base) {
    return std::make_unique<CPUOffloadOptimizer>(parameters, base, options);
  };
  if (name == "AdamW") return with(torch::optim::AdamWOptions(1e-2).weight_decay(0.1));
  if (name == "Adam") return with(torch::optim::AdamOptions(1e-2).amsgrad(true));
  if (name == "SGD") return with(torch::optim::SGDOptions(1e-2).momentum(0.9));
  if (name == "Lion") return with(outboard::LionOptions(1e-2).weight_decay(0.1));
  if (name == "Adagrad") {
    return with(torch::optim::AdagradOptions(1e-2).lr_decay(0.1).initial_accumulator_value(0.5));
  }
  if (name == "RMSprop") {
    return with(torch::optim::RMSpropOptions(1e-2).centered(true).momentum(0.5));
  }
  if (name == "AdEMAMix") return with(outboard::AdEMAMixOptions(1e-2).t_alpha(4).t_beta3(4));
  if (name == "LAMB") {
    return with(outboard::LAMBOptions(1e-2).weight_decay(0.1).max_unorm(0.5));
  }
  if (name == "LARS") return with(outboard::LARSOptions(1.0).weight_decay(0.1));
  return std::make_unique<CPUOffloadOptimizer>(  // "Generic"
      parameters,
      [](std::vector<at::Tensor> tensors) {
        return std::make_unique<torch::optim::RMSprop>(std::move(tensors),
                                                       torch::optim::RMSpropOptions(1e-2));
      },
      options);
}

void run(CPUOffloadOptimizer& optimizer, std::vector<at::Tensor>& parameters, int64_t first,
         int64_t last) {
  for (int64_t step = first; step < last; ++step) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      const auto number = 3 * step + static_cast<int64_t>(i);
      parameters[i].mutable_grad() =
          pattern(parameters[i].sizes(), number).to(parameters[i].scalar_type()).clone();
    }
    optimizer.step();
    optimizer.zero_grad();
  }
  optimizer.synchronize();
}

int run_all(char** arguments) {
  const std::string name = arguments[1];
  const auto type = arguments[2] == std::string("bf16") ? at::kBFloat16 : at::kFloat;
  const int64_t first = std::stoll(arguments[3]);
  const int64_t last = std::stoll(arguments[4]);
  std::vector<at::Tensor> parameters = {pattern({17, 33}, 0).to(type).requires_grad_(true),
                                        pattern({300}, 1).to(type).requires_grad_(true)};
  run(*make(name, parameters), parameters, 0, first);
  const auto optimizer = make(name, parameters);
  if (arguments[5] != std::string("-")) optimizer->load_checkpoint(arguments[5]);
  run(*optimizer, parameters, first, last);
  optimizer->save_checkpoint(arguments[6]);
  for (const at::Tensor& parameter : parameters) {
    const at::Tensor values = parameter.detach().to(at::kFloat).flatten();
    for (int64_t i = 0; i < values.numel(); ++i) {
      std::printf("%.9g\n", static_cast<double>(values.data_ptr<float>()[i]));
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 7) {
    std::fprintf(stderr, "usage: %s OPTIMIZER DTYPE FIRST LAST INPUT OUTPUT\n", arguments[0]);
    return 2;
  }
  try {
    return run_all(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
