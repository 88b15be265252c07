// AdEMAMix on the GPU; the formula is in outboard/rules/ademamix.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/ademamix.h"

void outboard::gpu::launch_ademamix(const LaunchKey& key, const LaunchTable& table,
                                    StreamHandle stream) {
  launch_rule<rules::AdEMAMix>(key, table, stream);
}
