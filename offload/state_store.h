// Owns the memory of masters, states, host images and gradient stores, and gives each parameter its
// pointers. Decides how many bytes; moves and computes nothing.
#ifndef OUTBOARD_OFFLOAD_STATE_STORE_H_
#define OUTBOARD_OFFLOAD_STATE_STORE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "offload/memory/host_memory.h"
#include "offload/memory/staging_ring.h"
#include "offload/parameter.h"
#include "offload/spare_memory.h"
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

  /// Gives the parameter's states, which then are zeros, other formats. Host memory of the old
  /// arrays is kept for the new ones and for later changes of the same parameter; device memory
  /// goes back. Nothing is changed when it throws Error(kMemory).
  void remake_states(Parameter& parameter, const std::array<StateFormat, kMaxStates>& formats);

  /// Gives every streamed parameter second copies of master and states, and device memory for new
  /// weights. False, with a warning, if memory does not suffice; then nothing was changed. Cheap
  /// when they are there.
  [[nodiscard]] bool ensure_second_copies(std::span<const ParameterPtr> parameters);
  /// Only the device memory of these.
  void ensure_shadows(std::span<const ParameterPtr> parameters);

  /// Gives streamed parameters that are to be updated on the host what that takes, in the place of
  /// their second copies. Throws Error(kMemory); they can be streamed as before then.
  void ensure_images(std::span<Parameter* const> parameters);
  /// Takes it back from parameters that are streamed from now on, and registers what will be copied
  /// with the device.
  void drop_images(std::span<Parameter* const> parameters);

  /// Gives every 16-bit offloaded parameter an fp32 accumulator.
  void ensure_accumulators(std::span<const ParameterPtr> parameters);

  /// A ring of pinned slots, and pinned memory of `bytes`, both zero-filled.
  [[nodiscard]] std::unique_ptr<StagingRing> make_ring(size_t slots, size_t slot_bytes);
  [[nodiscard]] void* staging(size_t bytes);

  /// Where device memory comes from, for what the store does not carve itself.
  [[nodiscard]] const Engine::Allocator& allocator() const { return allocator_; }
  /// The bytes of the stream lane's ring.
  void note_ring(size_t bytes) { ring_bytes_ = bytes; }

  [[nodiscard]] MemoryStats memory() const;
  [[nodiscard]] std::string warning() const;

 private:
  struct Wish;  // an array that a parameter wants: how many bytes, where the pointer goes
  std::vector<Wish> wishes_of(Parameter& parameter, std::span<const double> hyper) const;
  static std::vector<Wish> second_wishes_of(Parameter& parameter);
  /// Throws Error(kMemory) if host memory does not suffice for second copies of these.
  void check_spare_memory(std::span<Parameter* const> streamed) const;
  static std::vector<Wish> image_wishes_of(Parameter& parameter);
  static void hand_out(const SegmentSums& sums, std::span<const ParameterPtr> batch);
  static void add_state_wishes(const StateFormat& format, size_t elements, bool is_copied,
                               StateArray& state, std::vector<Wish>& wishes);
  /// Takes spare memory of `owner` first, if there is one.
  void grant_host(std::vector<Wish>& wishes, const Parameter* owner = nullptr);
  /// To each parameter from its own spare memory first.
  void grant_host_to(std::span<Parameter* const> parameters,
                     const std::function<std::vector<Wish>(Parameter&)>& wishes_of);
  void grant_device(std::vector<Wish>& wishes, std::shared_ptr<void>& owner);
  void grant_resident(Parameter& parameter, std::span<const double> hyper);

  /// A host array that is not used any more.
  struct Leftover {
    void* begin;
    size_t bytes;
    MemoryKind kind;
  };
  [[nodiscard]] static std::vector<Leftover> leftovers(
      const ParameterSpec& spec, const std::array<StateArray, kMaxStates>& states);
  /// As spare memory of `owner`; discount() then says that they are nothing else any more.
  void keep(const Parameter& owner, const std::vector<Leftover>& arrays);
  void discount(const std::vector<Leftover>& arrays);
  void drop_second_copy(Parameter& parameter);

  std::shared_ptr<Device> device_;
  Engine::Allocator allocator_;
  size_t spare_host_bytes_;
  mutable std::mutex mutex_;
  HostMemory host_memory_;
  SpareMemory spares_;
  size_t device_state_bytes_ = 0;
  size_t device_workspace_bytes_ = 0;
  size_t shadow_bytes_ = 0;
  std::atomic<size_t> ring_bytes_ = 0;
  std::string memory_warning_;
};

/// Whether state `i` of `rule` exists under these hyper-parameters.
[[nodiscard]] bool needs_state(const RuleInfo& rule, size_t i, std::span<const double> hyper);
/// Whether every state exists that `hyper` asks for.
[[nodiscard]] bool has_states(const Parameter& parameter, std::span<const double> hyper);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_STATE_STORE_H_
