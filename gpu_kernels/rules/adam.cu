// Adam on the GPU; the formula is in outboard/rules/adam.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/adam.h"

void outboard::gpu::launch_adam(const LaunchKey& key, const LaunchTable& table,
                                StreamHandle stream) {
  launch_rule<rules::Adam>(key, table, stream);
}
