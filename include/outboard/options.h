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
  kStreamed,  ///< master and state in host memory; they pass through a ring of device memory and
              ///< are updated there, so that the gradient never leaves the device
};

/// When updates of host and streamed parameters run. The results have the same bits.
enum class Schedule : uint8_t {
  kAtStep,       ///< step() returns when the last one is enqueued
  kNextForward,  ///< step() returns when the norm is known; whoever reads a weight waits for it
                 ///< with wait_weights()
  kInBackward,   ///< as kNextForward, and a gradient's update starts when it appears, if
                 ///< announce_step() told how: for good when nothing can change it any more, else
                 ///< into second copies that the step accepts or drops
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
  /// Elements of one piece of a streamed parameter, and how many pieces are on the device at once,
  /// as long as they take 1 GiB at most. State of the weight whose gradient comes last can wait
  /// there for it.
  size_t stream_elements = size_t{8} << 20;
  int stream_slots = 16;
  /// Second copies of streamed state let updates begin before the norm is known. They are made only
  /// if this much host memory is left beside them: the system ends a process that touches memory
  /// which is not there. Where they are not made, Engine::take_warnings() says so.
  size_t spare_host_bytes = size_t{2} << 30;
  /// For tests: weights that are on their way read as NaN until they arrive, so that a reader that
  /// did not wait is seen. Updates in backward are off then.
  bool poison_in_flight = false;
};

}  // namespace outboard

#endif  // OUTBOARD_OPTIONS_H_
