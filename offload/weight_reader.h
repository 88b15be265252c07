// Reads weights from the device into host images and masters: at construction, and after somebody
// else changed them.
#ifndef OUTBOARD_OFFLOAD_WEIGHT_READER_H_
#define OUTBOARD_OFFLOAD_WEIGHT_READER_H_

#include <span>

#include "cpu_kernels/parallel.h"
#include "offload/parameter.h"
#include "outboard/device.h"

namespace outboard {

/// Copies the weights of `parameters` down (after everything that `stream` was given), sets fp32
/// masters to them and split ones to 0 (unless a loaded one is being kept), and blocks until
/// that is done. `queue` and `device` may be null when every parameter is in host memory.
void read_weights(std::span<Parameter* const> parameters, Device* device, CopyQueue* queue,
                  ComputeStream stream, cpu::Arena& arena);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_WEIGHT_READER_H_
