// LARS on the GPU; the formula is in outboard/rules/lars.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/lars.h"

void outboard::gpu::launch_lars(const LaunchKey& key, const LaunchTable& table,
                                StreamHandle stream) {
  launch_rule<rules::LARS>(key, table, stream);
}
