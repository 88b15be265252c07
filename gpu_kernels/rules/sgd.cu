// SGD on the GPU; the formula is in outboard/rules/sgd.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/sgd.h"

void outboard::gpu::launch_sgd(const LaunchKey& key, const LaunchTable& table,
                               StreamHandle stream) {
  launch_rule<rules::SGD>(key, table, stream);
}
