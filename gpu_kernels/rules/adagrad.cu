// Adagrad on the GPU; the formula is in outboard/rules/adagrad.h.
#include "gpu_kernels/fused_step.cuh"
#include "outboard/rules/adagrad.h"

void outboard::gpu::launch_adagrad(const LaunchKey& key, const LaunchTable& table,
                                   StreamHandle stream) {
  launch_rule<rules::Adagrad>(key, table, stream);
}
