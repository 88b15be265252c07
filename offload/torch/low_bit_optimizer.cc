// The options of LowBitOptimizer in terms of those of the class it is; see low_bit_optimizer.h.
#include "outboard/torch/low_bit_optimizer.h"

#include <limits>

namespace outboard {

CPUOffloadOptions LowBitOptions::without_offload() const {
  return {.state_format = state_format,
          .block_size = block_size,
          .min_quantized_elements = min_quantized_elements,
          .state_formats = state_formats,
          .names = names,
          .master = master,
          .factored_second_moment = factored_second_moment,
          .max_gradient_norm = max_gradient_norm,
          .min_offload_elements = std::numeric_limits<int64_t>::max(),
          .skip_nonfinite = skip_nonfinite,
          .threads = threads,
          .seed = seed,
          .simulated_device = simulated_device};
}

}  // namespace outboard
