// RMSprop on the GPU; the formula is in outboard/rules/rmsprop.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/rmsprop.h"

void outboard::gpu::launch_rmsprop(const LaunchKey& key, const LaunchTable& table,
                                   StreamHandle stream) {
  launch_rule<rules::RMSprop>(key, table, stream);
}
