// Owns the memory of masters, states, host images and gradient stores, and gives each parameter its
// pointers. Decides how many bytes; moves and computes nothing.
#ifndef OUTBOARD_OFFLOAD_STATE_STORE_H_
#define OUTBOARD_OFFLOAD_STATE_STORE_H_

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "offload/host_memory.h"
#include "offload/parameter.h"
#include "offload/staging_ring.h"
#include "outboard/engine.h"

namespace outboard {

/// One store per engine. Methods may be called from the caller's thread and from the driver.
class StateStore {
 public:
  StateStore(const EngineOptions& options, std::shared_ptr<Device> device,
             Engine::Allocator allocator);

  /// Allocates everything that the parameters of one add_parameters() call need, and their segment
  /// sums. Nothing is changed when it throws Error(kMemory).
  [[nodiscard]] SegmentSums add(std::span<const ParameterPtr> batch);

  /// Makes the states exist that `hyper` asks for; zero-filled.
  void ensure_states(Parameter& parameter, std::span<const double> hyper);

  /// Gives every 16-bit offloaded parameter an fp32 accumulator.
  void ensure_accumulators(std::span<const ParameterPtr> parameters);

  /// A ring of pinned slots, and pinned memory of `bytes`, both zero-filled.
  [[nodiscard]] std::unique_ptr<StagingRing> make_ring(size_t slots, size_t slot_bytes);
  [[nodiscard]] void* staging(size_t bytes);

  [[nodiscard]] MemoryStats memory() const;
  [[nodiscard]] std::string warning() const;

 private:
  struct Wish;  // an array that a parameter wants: how many bytes, where the pointer goes
  std::vector<Wish> wishes_of(Parameter& parameter, std::span<const double> hyper) const;
  static void hand_out(const SegmentSums& sums, std::span<const ParameterPtr> batch);
  void grant_host(std::vector<Wish>& wishes);
  void grant_device(Parameter& parameter, std::vector<Wish>& wishes);

  std::shared_ptr<Device> device_;
  Engine::Allocator allocator_;
  mutable std::mutex mutex_;
  HostMemory host_memory_;
  size_t device_state_bytes_ = 0;
  size_t device_workspace_bytes_ = 0;
};

/// Whether state `i` of `rule` exists under these hyper-parameters.
[[nodiscard]] bool needs_state(const RuleInfo& rule, size_t i, std::span<const double> hyper);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_STATE_STORE_H_
