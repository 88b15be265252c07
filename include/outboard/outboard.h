// Everything a user of the C++ API includes. A training loop:
//
//   #include <outboard/outboard.h>
//   #include <torch/torch.h>
//
//   auto model = torch::nn::Linear(4096, 4096);
//   model->to(torch::kCUDA, torch::kBFloat16);
//   outboard::CPUOffloadOptimizer optimizer(
//       model->parameters(), torch::optim::AdamWOptions(3e-4).weight_decay(0.1),
//       {.offload_gradients = true, .state_format = "bf16", .max_gradient_norm = 1.0});
//   torch::optim::StepLR schedule(optimizer, /*step_size=*/100, /*gamma=*/0.9);
//   for (const auto& [inputs, targets] : batches) {
//     torch::mse_loss(model->forward(inputs), targets).backward();  // gradients go to the host
//     optimizer.step();       // updates there; nothing is synchronised
//     optimizer.zero_grad();
//     schedule.step();
//   }
//   optimizer.save_checkpoint("optimizer.pt");  // torch.load and Python's outboard read it
//
// The engine without torch is in outboard/engine.h, which this file includes too.
#ifndef OUTBOARD_OUTBOARD_H_
#define OUTBOARD_OUTBOARD_H_

#include "outboard/device.h"
#include "outboard/engine.h"
#include "outboard/error.h"
#include "outboard/options.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "outboard/stats.h"
#include "outboard/types.h"

// The libtorch face, where the program has torch.
#if __has_include(<torch/optim/optimizer.h>)
#include "outboard/torch/cpu_offload_optimizer.h"
#endif

#endif  // OUTBOARD_OUTBOARD_H_
