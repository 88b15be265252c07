// AdamW on the GPU; the formula is in outboard/rules/adamw.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/adamw.h"

void outboard::gpu::launch_adamw(const LaunchKey& key, const LaunchTable& table,
                                 StreamHandle stream) {
  launch_rule<rules::AdamW>(key, table, stream);
}
