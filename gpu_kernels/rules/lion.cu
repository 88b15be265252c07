// Lion on the GPU; the formula is in outboard/rules/lion.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/lion.h"

void outboard::gpu::launch_lion(const LaunchKey& key, const LaunchTable& table,
                                StreamHandle stream) {
  launch_rule<rules::Lion>(key, table, stream);
}
