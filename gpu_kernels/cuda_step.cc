// StepLauncher with CUDA: checks parameters, keeps launch tables in device memory, and hands them
// to the rule's launcher. No arithmetic on elements lives here.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "gpu_kernels/cuda_check.h"
#include "gpu_kernels/launch.h"

namespace outboard::gpu {
namespace {

constexpr std::string_view kWho = "StepLauncher";

/// Tables that are kept: the groups, types and formats of one optimizer's step find theirs again;
/// or as many launches as are enqueued before the first of them has run.
constexpr size_t kTableSlots = 8;
constexpr size_t kHostTableSlots = 64;

static_assert(std::has_unique_object_representations_v<DeviceParameter>,
              "tables are compared byte by byte");
static_assert(sizeof(DeviceParameter) % alignof(BlockWork) == 0, "the block list follows");

/// A CUDA event without timing. Destruction tolerates a runtime that is shutting down.
class TableEvent {
 public:
  TableEvent() = default;
  ~TableEvent() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  TableEvent(const TableEvent&) = delete;
  TableEvent& operator=(const TableEvent&) = delete;

  void record(cudaStream_t stream) {
    if (event_ == nullptr) {
      check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), kWho,
                 "cudaEventCreateWithFlags");
    }
    check_cuda(cudaEventRecord(event_, stream), kWho, "cudaEventRecord");
  }
  /// An event that was never recorded counts as done.
  void block_stream(cudaStream_t stream) const {
    if (event_ == nullptr) return;
    check_cuda(cudaStreamWaitEvent(stream, event_, 0), kWho, "cudaStreamWaitEvent");
  }
  void block_host() const {
    if (event_ == nullptr) return;
    check_cuda(cudaEventSynchronize(event_), kWho, "cudaEventSynchronize");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Device memory, and the pinned image of what is uploaded to its beginning.
class TableMemory {
 public:
  TableMemory() = default;
  ~TableMemory() { release(); }
  TableMemory(const TableMemory&) = delete;
  TableMemory& operator=(const TableMemory&) = delete;

  /// Grows to `uploaded` bytes and `more` behind them on the device, at least. cudaFree waits for
  /// the kernels that read the old memory.
  void reserve(size_t uploaded, size_t more) {
    if (uploaded <= host_bytes_ && uploaded + more <= device_bytes_) return;
    release();
    const size_t host_bytes = std::max(uploaded + uploaded / 2, size_t{4096});
    const size_t device_bytes = host_bytes + more + more / 2;
    check_cuda(cudaMalloc(&device_, device_bytes), kWho, "cudaMalloc of a launch table");
    check_cuda(cudaMallocHost(&host_, host_bytes), kWho, "cudaMallocHost of a launch table");
    host_bytes_ = host_bytes;
    device_bytes_ = device_bytes;
  }
  [[nodiscard]] std::byte* device() const { return static_cast<std::byte*>(device_); }
  [[nodiscard]] std::byte* host() const { return static_cast<std::byte*>(host_); }

 private:
  void release() {
    host_bytes_ = device_bytes_ = 0;
    if (device_ != nullptr) cudaFree(std::exchange(device_, nullptr));
    if (host_ != nullptr) cudaFreeHost(std::exchange(host_, nullptr));
  }

  void* device_ = nullptr;
  void* host_ = nullptr;
  size_t host_bytes_ = 0;
  size_t device_bytes_ = 0;
};

/// One table with the parameters it was made from.
struct TableSlot {
  std::vector<DeviceParameter> parameters;
  bool has_norms = false;  ///< the table has a NormWorkspace
  TableMemory memory;
  DeviceTable table = {};
  TableEvent uploaded;  ///< after the copy that reads the pinned image
  TableEvent used;      ///< after the last kernel that reads the device memory
  uint64_t last_use = 0;
};

bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kStateAlignment == 0;
}

uint32_t state_mask(const DeviceParameter& parameter) {
  uint32_t mask = 0;
  for (size_t s = 0; s < kMaxStates; ++s) mask |= parameter.codes[s] != nullptr ? 1u << s : 0u;
  return mask;
}

void check_key(const LaunchKey& key) {
  const bool is_valid = key.master_format == MasterFormat::kWeight ? key.weight_type == DType::kF32
                        : key.master_format == MasterFormat::kF32  ? key.weight_type != DType::kF32
                                                                  : key.weight_type == DType::kBF16;
  if (is_valid) return;
  fail(ErrorKind::kValue, kWho, "master format ", static_cast<int>(key.master_format),
       " does not serve weights of type ", name_of(key.weight_type),
       "; fp32 weights are their own master, split, split8 and stochastic masters serve bfloat16");
}

void check_parameter(const LaunchKey& key, const DeviceParameter& parameter, size_t index,
                     uint32_t states) {
  const auto require = [&](bool holds, std::string_view what) {
    if (!holds) fail(ErrorKind::kValue, kWho, "parameter ", index, " of the launch ", what);
  };
  require(parameter.gradient != nullptr && parameter.weight != nullptr,
          "has no gradient or no weight; leave it out or give both");
  require(bytes_of(key.master_format) == 0 || parameter.master != nullptr,
          "has no master, and its master format keeps one; give the array");
  require(state_mask(parameter) == states,
          "has other states than the first; launch parameters with equal states together");
  require(is_aligned(parameter.master) &&
              std::all_of(parameter.codes.begin(), parameter.codes.end(), is_aligned),
          "has a master or state that is not aligned to 16 bytes; align it");
  require(parameter.element_offset % kTileElements == 0,
          "starts inside a tile of its whole parameter; cut at multiples of 256 elements");
  require(!needs_norms(key.rule) || parameter.element_offset == 0,
          "is a piece, and its rule needs the norms of the whole parameter; launch it whole");
  require(reinterpret_cast<uintptr_t>(parameter.gradient) % bytes_of(key.gradient_type) == 0 &&
              reinterpret_cast<uintptr_t>(parameter.weight) % bytes_of(key.weight_type) == 0,
          "has a weight or gradient that is not aligned to its own element size; align it");
}

}  // namespace

class StepLauncher::Impl {
 public:
  explicit Impl(TablePlace place)
      : place_(place), slots_(place == TablePlace::kHost ? kHostTableSlots : kTableSlots) {}

  void launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
              cudaStream_t stream) {
    check_key(key);
    const auto first = std::find_if(parameters.begin(), parameters.end(),
                                    [](const auto& parameter) { return parameter.elements > 0; });
    if (first == parameters.end()) return;
    const uint32_t states = state_mask(*first);
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].elements > 0) check_parameter(key, parameters[i], i, states);
    }
    TableSlot& slot = table_for(parameters, states, needs_norms(key.rule), stream);
    slot.last_use = ++clock_;
    // The copy may have been enqueued on another stream than this launch.
    slot.uploaded.block_stream(stream);
    rule_launcher(key.rule)(key, slot.table, stream);
    slot.used.record(stream);
  }

 private:
  TableSlot& table_for(std::span<const DeviceParameter> parameters, uint32_t states, bool has_norms,
                       cudaStream_t stream) {
    for (TableSlot& slot : slots_) {
      if (slot.has_norms == has_norms && slot.parameters.size() == parameters.size() &&
          std::memcmp(slot.parameters.data(), parameters.data(), parameters.size_bytes()) == 0) {
        return slot;
      }
    }
    TableSlot& oldest = *std::min_element(
        slots_.begin(), slots_.end(),
        [](const TableSlot& a, const TableSlot& b) { return a.last_use < b.last_use; });
    upload(oldest, parameters, states, has_norms, stream);
    return oldest;
  }

  // Order: the host waits until the previous copy out of the pinned image is done (it is, unless
  // kTableSlots tables were sent within one copy's time), or until the last kernel that reads the
  // image itself is; the stream waits until the last kernel that reads the device table is done;
  // only then is either overwritten.
  void upload(TableSlot& slot, std::span<const DeviceParameter> parameters, uint32_t states,
              bool has_norms, cudaStream_t stream) {
    slot.parameters.clear();  // whatever fails below, a half-made table is never found again
    const bool is_copied = place_ == TablePlace::kDevice;
    (is_copied ? slot.uploaded : slot.used).block_host();
    slot.used.block_stream(stream);
    const size_t blocks = count_blocks(parameters);
    const size_t bytes = parameters.size_bytes() + blocks * sizeof(BlockWork);
    const size_t norms_at = round_up(bytes, alignof(RuleScalars));
    const size_t sums = blocks * kBlockSegments;
    const size_t norms_bytes =
        has_norms ? parameters.size() * sizeof(RuleScalars) + 2 * sums * sizeof(float) : 0;
    slot.memory.reserve(bytes, norms_at - bytes + norms_bytes);
    std::memcpy(slot.memory.host(), parameters.data(), parameters.size_bytes());
    fill_blocks(parameters, slot.memory.host() + parameters.size_bytes());
    if (is_copied) {
      check_cuda(cudaMemcpyAsync(slot.memory.device(), slot.memory.host(), bytes,
                                 cudaMemcpyHostToDevice, stream),
                 kWho, "cudaMemcpyAsync of a launch table");
      slot.uploaded.record(stream);
    }
    // Pinned memory has the same address on the device.
    const std::byte* const begin = is_copied ? slot.memory.device() : slot.memory.host();
    slot.table = {.parameters = reinterpret_cast<const DeviceParameter*>(begin),
                  .blocks = reinterpret_cast<const BlockWork*>(begin + parameters.size_bytes()),
                  .norms = {},
                  .block_count = static_cast<uint32_t>(blocks),
                  .state_mask = states};
    if (has_norms) {
      slot.table.norms.scalars = reinterpret_cast<RuleScalars*>(slot.memory.device() + norms_at);
      slot.table.norms.weight_sums =
          reinterpret_cast<float*>(slot.table.norms.scalars + parameters.size());
      slot.table.norms.update_sums = slot.table.norms.weight_sums + sums;
    }
    slot.has_norms = has_norms;
    slot.parameters.assign(parameters.begin(), parameters.end());
  }

  static size_t blocks_of(const DeviceParameter& parameter) {
    return (parameter.elements + kBlockElements - 1) / kBlockElements;
  }

  static size_t count_blocks(std::span<const DeviceParameter> parameters) {
    constexpr size_t kMostBlocks = 0x7FFFFFFF;
    size_t blocks = 0;
    for (const DeviceParameter& parameter : parameters) blocks += blocks_of(parameter);
    if (blocks > kMostBlocks) {
      fail(ErrorKind::kValue, kWho, "one launch would need ", blocks, " blocks of ", kBlockElements,
           " elements, and a grid holds ", kMostBlocks, "; launch fewer at once");
    }
    return blocks;
  }

  static void fill_blocks(std::span<const DeviceParameter> parameters, std::byte* target) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      const size_t parts = blocks_of(parameters[i]);
      for (size_t part = 0; part < parts; ++part) {
        const BlockWork work{static_cast<uint32_t>(i), static_cast<uint32_t>(part)};
        std::memcpy(target, &work, sizeof(work));
        target += sizeof(work);
      }
    }
  }

  TablePlace place_;
  std::vector<TableSlot> slots_;
  uint64_t clock_ = 0;
};

StepLauncher::StepLauncher(TablePlace place) : impl_(std::make_unique<Impl>(place)) {}
StepLauncher::~StepLauncher() = default;

void StepLauncher::launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
                          StreamHandle stream) {
  impl_->launch(key, parameters, static_cast<cudaStream_t>(stream));
}

}  // namespace outboard::gpu
