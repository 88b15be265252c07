// AdamWFactored on the GPU; the formula is in outboard/rules/adamw_factored.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/adamw_factored.h"

void outboard::gpu::launch_adamw_factored(const LaunchKey& key, const LaunchTable& table,
                                          StreamHandle stream) {
  launch_rule<rules::AdamWFactored>(key, table, stream);
}
