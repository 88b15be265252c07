// Options of the engine. Every knob that outboard has comes in through these structs: the library
// reads no environment.
#ifndef OUTBOARD_OPTIONS_H_
#define OUTBOARD_OPTIONS_H_

#include <cstddef>
#include <cstdint>

#include "outboard/types.h"

namespace outboard {

/// Where a parameter's state lives and who updates it.
enum class Placement : uint8_t {
  kResident,  ///< state beside the weight in device memory, updated by the fused GPU kernel
  kHost,      ///< master and state in host memory, updated by the CPU kernels
};

/// When the host update runs.
enum class Schedule : uint8_t {
  kAtStep,  ///< inside step(), chunk by chunk, copies overlapping backward and each other
};

struct EngineOptions {
  /// Gradients are copied as they appear, their device memory is given back, and further backwards
  /// are added in fp32 on the host. False: the gradient stays with the caller, who accumulates, and
  /// the last value sent counts.
  bool offload_gradients = false;
  /// A step with an Inf or NaN gradient changes nothing and is counted.
  bool skip_nonfinite = true;
  /// Global gradient norm above which gradients are scaled down; 0: off.
  double max_gradient_norm = 0;
  Schedule schedule = Schedule::kAtStep;
  /// Compute threads of the host update, the driver included; 0: chosen from the cores.
  int threads = 0;
  /// Register transfer memory with the device.
  bool pin_memory = true;
  /// Seed of stochastic rounding.
  uint64_t seed = 0;
  /// Elements of one chunk, the unit of pipeline work. 16 Mi keep copies at full speed and the
  /// pipeline shallow.
  size_t chunk_elements = size_t{16} << 20;
  /// Bytes of one staging slot, and how many; used when gradients are accumulated on the host.
  size_t slot_bytes = size_t{32} << 20;
  int slots = 4;
};

}  // namespace outboard

#endif  // OUTBOARD_OPTIONS_H_
