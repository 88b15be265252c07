// Host memory of one optimizer: exact-size slabs, touched in parallel and registered with the
// device, carved into arrays. Sizes, mapping and pinning live here; what the arrays hold does not.
#ifndef OUTBOARD_OFFLOAD_MEMORY_HOST_MEMORY_H_
#define OUTBOARD_OFFLOAD_MEMORY_HOST_MEMORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "offload/memory/memory_mapping.h"
#include "outboard/device.h"

namespace outboard {

/// What an array is for; one counter each in MemoryStats.
enum class MemoryKind : uint8_t { kWeights, kMasters, kState, kGradients, kAccumulators, kStaging };
inline constexpr size_t kMemoryKinds = 6;

/// A place in HostMemory. Cheap to copy, owns nothing; valid as long as the HostMemory that gave it
/// (or until a rollback of its reservation).
class HostArray {
 public:
  HostArray() = default;
  /// Address of byte 0: null before the commit, and for arrays of 0 bytes. Zero-filled at first.
  [[nodiscard]] void* data() const { return place_ == nullptr ? nullptr : place_->address; }
  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data());
  }
  /// Bytes as reserved.
  [[nodiscard]] size_t bytes() const { return place_ == nullptr ? 0 : place_->bytes; }

 private:
  friend class HostMemory;
  struct Place {
    void* address = nullptr;
    size_t bytes = 0;
    MemoryKind kind = MemoryKind::kWeights;
    bool transfer = false;
    size_t slab = 0;    // in the plan of the commit under way
    size_t offset = 0;  // in that slab
  };
  explicit HostArray(const Place* place) : place_(place) {}
  const Place* place_ = nullptr;
};

/// Arrays in anonymous memory that is returned when this object goes. Reserve everything that is
/// known, then commit once: what is committed together is packed into slabs, each
/// registered as one range, and no array straddles two. Arrays begin at multiples of 64 bytes,
/// those of 256 KiB or more at multiples of 4096. Not thread safe; the arrays themselves are plain
/// memory.
class HostMemory {
 public:
  /// `device` (may be null: nothing is ever pinned) registers transfer arrays if `pin`. `threads`
  /// touch and register; 0: one per core that the process may use. Arrays share a slab up to
  /// `slab_bytes`: registration works on whole slabs, several at the same time, so they are large
  /// enough to be few and small enough to be many.
  explicit HostMemory(std::shared_ptr<Device> device = nullptr, bool pin = true, int threads = 0,
                      size_t slab_bytes = size_t{1} << 30);
  /// Unpins and unmaps. No copy from or to the arrays may be in flight.
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  /// Plans an array of `bytes`; it has no address before commit(). `transfer`: it is copied from or
  /// to the device, and so lies in pinned memory where that is granted. Throws Error(kMemory) for
  /// sizes that no address space holds.
  [[nodiscard]] HostArray reserve(size_t bytes, MemoryKind kind, bool transfer);

  /// Maps, touches and registers everything reserved since the last commit. Blocks until all of it
  /// is resident. Throws Error(kMemory), saying how much was asked and held, if the system refuses;
  /// then nothing is mapped, the reservations are rolled back and earlier arrays are as before.
  void commit();

  /// Forgets everything reserved since the last commit; those HostArrays must not be used any more.
  void rollback();

  /// Which slab an address of committed memory is in.
  [[nodiscard]] size_t slab_of(const void* address) const;
  /// Registers a slab with the device if pinning is asked for and it is not registered. A refusal
  /// is a warning(), as at commit().
  void pin_slab(size_t slab);

  /// Committed memory has another use now: `bytes` more, or fewer, are of this kind.
  void count(MemoryKind kind, size_t bytes) { bytes_[static_cast<size_t>(kind)] += bytes; }
  void discount(MemoryKind kind, size_t bytes) { bytes_[static_cast<size_t>(kind)] -= bytes; }
  /// Bytes of committed arrays of this kind, as reserved and counted since.
  [[nodiscard]] size_t bytes(MemoryKind kind) const { return bytes_[static_cast<size_t>(kind)]; }
  /// Bytes of all slabs: the arrays, their alignment, and each slab's last page.
  [[nodiscard]] size_t mapped_bytes() const { return mapped_bytes_; }
  /// How much of mapped_bytes() is registered with the device.
  [[nodiscard]] size_t pinned_bytes() const { return pinned_bytes_; }
  /// Empty, or why memory that should be pinned is not and what to do. Set once, by the first
  /// commit that was refused, and kept; the caller shows it.
  [[nodiscard]] const std::string& warning() const { return warning_; }

 private:
  struct Slab {
    size_t offset = 0;  // in its mapping
    size_t bytes = 0;   // of arrays, with their alignment; whole pages are mapped
    bool transfer = false;
    char* begin = nullptr;
    bool is_pinned = false;
  };

  [[nodiscard]] std::vector<Slab> plan_slabs();
  void map(std::vector<Slab> slabs);
  void touch_and_pin(std::vector<Slab>* slabs);
  void unpin(const std::vector<Slab>& slabs) noexcept;
  void account(const std::vector<Slab>& slabs);
  void warn_of_unpinned(size_t bytes);

  std::shared_ptr<Device> device_;
  bool pin_;
  int threads_;
  size_t slab_bytes_;
  std::deque<HostArray::Place> places_;  // a deque: HostArray points into it
  size_t committed_places_ = 0;
  size_t pending_bytes_ = 0;
  std::vector<MemoryMapping> mappings_;
  std::vector<Slab> slabs_;
  std::array<size_t, kMemoryKinds> bytes_ = {};
  size_t mapped_bytes_ = 0;
  size_t pinned_bytes_ = 0;
  std::string warning_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_MEMORY_HOST_MEMORY_H_
