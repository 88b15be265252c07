// LAMB on the GPU; the formula is in outboard/rules/lamb.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/lamb.h"

void outboard::gpu::launch_lamb(const LaunchKey& key, const LaunchTable& table,
                                StreamHandle stream) {
  launch_rule<rules::LAMB>(key, table, stream);
}
