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
#include "gpu_kernels/cuda_table_memory.h"
#include "gpu_kernels/launch.h"

namespace outboard::gpu {
namespace {

constexpr std::string_view kWho = kTableWho;

/// Tables that are kept: the groups, types and formats of one optimizer's step find theirs again;
/// or as many launches as are enqueued before the first of them has run.
constexpr size_t kTableSlots = 8;
constexpr size_t kHostTableSlots = 64;

static_assert(std::has_unique_object_representations_v<DeviceParameter> &&
                  std::has_unique_object_representations_v<DeviceNumbers>,
              "tables are compared byte by byte");
static_assert(sizeof(DeviceParameter) % alignof(DeviceNumbers) == 0, "the numbers follow");
static_assert(sizeof(DeviceNumbers) % alignof(BlockWork) == 0, "the block list follows");

/// What a table is made from.
struct TableContents {
  std::span<const DeviceParameter> parameters;
  std::span<const DeviceNumbers> numbers;  ///< one for each parameter, or none
  uint32_t states = 0;
  bool has_norms = false;    ///< the table has a NormWorkspace
  bool has_factors = false;  ///< and a FactorWorkspace

  [[nodiscard]] bool has_scalars() const { return has_norms || has_factors || !numbers.empty(); }
};

template <class T>
bool are_same(const std::vector<T>& kept, std::span<const T> wanted) {
  return kept.size() == wanted.size() &&
         (kept.empty() || std::memcmp(kept.data(), wanted.data(), wanted.size_bytes()) == 0);
}

/// One table with what it was made from.
struct TableSlot {
  std::vector<DeviceParameter> parameters;
  std::vector<DeviceNumbers> numbers;
  bool has_norms = false;
  bool has_factors = false;
  TableMemory memory;
  LaunchTable table = {};
  TableEvent uploaded;  ///< after the copy that reads the pinned image
  TableEvent used;      ///< after the last kernel that reads the device memory
  uint64_t last_use = 0;

  [[nodiscard]] bool holds(const TableContents& contents) const {
    return has_norms == contents.has_norms && has_factors == contents.has_factors &&
           are_same(parameters, contents.parameters) && are_same(numbers, contents.numbers);
  }
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
  require((!needs_norms(key.rule) && !needs_factors(key.rule)) || parameter.element_offset == 0,
          "is a piece, and its rule looks at the whole parameter first; launch it whole");
  require(
      !needs_factors(key.rule) || (parameter.rows > 0 && parameter.elements % parameter.rows == 0),
      "has rows that do not divide its elements; give those of a matrix");
  require(reinterpret_cast<uintptr_t>(parameter.gradient) % bytes_of(key.gradient_type) == 0 &&
              reinterpret_cast<uintptr_t>(parameter.weight) % bytes_of(key.weight_type) == 0 &&
              reinterpret_cast<uintptr_t>(parameter.old_weight) % bytes_of(key.weight_type) == 0,
          "has a weight or gradient that is not aligned to its own element size; align it");
}

void check_numbers(const TableContents& contents) {
  const auto require = [](bool holds, size_t index, std::string_view what) {
    if (!holds) fail(ErrorKind::kValue, kWho, "parameter ", index, " of the launch ", what);
  };
  for (size_t i = 0; i < contents.numbers.size(); ++i) {
    const auto& [step, hyper] = contents.numbers[i];
    require(step != nullptr && hyper != nullptr, i,
            "has no step count or no hyper-parameters in device memory; give both");
    require(contents.parameters[i].element_offset == 0, i,
            "is a piece, and each launch counts its step; launch it whole");
  }
}

}  // namespace

class StepLauncher::Impl {
 public:
  explicit Impl(TablePlace place)
      : place_(place), slots_(place == TablePlace::kHost ? kHostTableSlots : kTableSlots) {}

  void launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
              std::span<const DeviceNumbers> numbers, cudaStream_t stream) {
    check_key(key);
    const auto first = std::find_if(parameters.begin(), parameters.end(),
                                    [](const auto& parameter) { return parameter.elements > 0; });
    if (first == parameters.end()) return;
    const TableContents contents{parameters, numbers, state_mask(*first), needs_norms(key.rule),
                                 needs_factors(key.rule)};
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].elements > 0) check_parameter(key, parameters[i], i, contents.states);
    }
    check_numbers(contents);
    if (!numbers.empty() && is_capturing(stream)) {
      const OutsideCapture guard;
      rule_launcher(key.rule)(key, captured_table_for(contents), stream);
      return;
    }
    TableSlot& slot = table_for(contents, stream);
    slot.last_use = ++clock_;
    // The copy may have been enqueued on another stream than this launch.
    slot.uploaded.block_stream(stream);
    rule_launcher(key.rule)(key, slot.table, stream);
    slot.used.record(stream);
  }

 private:
  TableSlot& table_for(const TableContents& contents, cudaStream_t stream) {
    for (TableSlot& slot : slots_) {
      if (slot.holds(contents)) return slot;
    }
    TableSlot& oldest = *std::min_element(
        slots_.begin(), slots_.end(),
        [](const TableSlot& a, const TableSlot& b) { return a.last_use < b.last_use; });
    upload(oldest, contents, stream);
    return oldest;
  }

  // Graphs read these tables whenever they are replayed, so they are never overwritten. The copy is
  // no part of the graph: it is done before this returns.
  const LaunchTable& captured_table_for(const TableContents& contents) {
    for (const auto& slot : captured_) {
      if (slot->holds(contents)) return slot->table;
    }
    auto slot = std::make_unique<TableSlot>();
    const size_t bytes = reserve(*slot, contents);
    copy_aside(slot->memory.device(), slot->memory.host(), bytes);
    complete(*slot, contents, slot->memory.device());
    return captured_.emplace_back(std::move(slot))->table;
  }

  // Order: the host waits until the previous copy out of the pinned image is done (it is, unless
  // kTableSlots tables were sent within one copy's time), or until the last kernel that reads the
  // image itself is; the stream waits until the last kernel that reads the device table is done;
  // only then is either overwritten.
  void upload(TableSlot& slot, const TableContents& contents, cudaStream_t stream) {
    slot.parameters.clear();  // whatever fails below, a half-made table is never found again
    const bool is_copied = place_ == TablePlace::kDevice;
    (is_copied ? slot.uploaded : slot.used).block_host();
    slot.used.block_stream(stream);
    const size_t bytes = reserve(slot, contents);
    if (is_copied) {
      check_cuda(cudaMemcpyAsync(slot.memory.device(), slot.memory.host(), bytes,
                                 cudaMemcpyHostToDevice, stream),
                 kWho, "cudaMemcpyAsync of a launch table");
      slot.uploaded.record(stream);
    }
    // Pinned memory has the same address on the device.
    complete(slot, contents, is_copied ? slot.memory.device() : slot.memory.host());
  }

  // Where the parts of a table's image begin, and how long it is.
  struct Image {
    size_t numbers, blocks, offsets, bytes;

    explicit Image(const TableContents& contents)
        : numbers(contents.parameters.size_bytes()),
          blocks(numbers + contents.numbers.size_bytes()),
          offsets(blocks + count_blocks(contents.parameters) * sizeof(BlockWork)),
          bytes(offsets +
                (contents.has_factors ? contents.parameters.size() * sizeof(uint64_t) : 0)) {}
    // Where in device memory scalars follow, and behind them sums.
    [[nodiscard]] size_t scalars() const { return round_up(bytes, alignof(RuleScalars)); }
  };

  // Makes room for a table and writes its image: parameters, numbers, blocks, offsets. Returns its
  // bytes.
  static size_t reserve(TableSlot& slot, const TableContents& contents) {
    const auto& [parameters, numbers, states, has_norms, has_factors] = contents;
    const Image image(contents);
    const size_t norm_sums = has_norms ? 2 * count_blocks(parameters) * kBlockSegments : 0;
    const std::vector<uint64_t> offsets = factor_offsets(contents);
    const size_t sums_bytes = (norm_sums + offsets.back()) * sizeof(float);
    const size_t scalars_bytes =
        contents.has_scalars() ? parameters.size() * sizeof(RuleScalars) : 0;
    slot.memory.reserve(image.bytes, image.scalars() - image.bytes + scalars_bytes + sums_bytes);
    std::byte* const host = slot.memory.host();
    std::memcpy(host, parameters.data(), parameters.size_bytes());
    if (!numbers.empty()) {
      std::memcpy(host + image.numbers, numbers.data(), numbers.size_bytes());
    }
    fill_blocks(parameters, host + image.blocks);
    std::memcpy(host + image.offsets, offsets.data(), image.bytes - image.offsets);
    return image.bytes;
  }

  // Where each parameter's sums of rows and columns begin, and last where they end.
  static std::vector<uint64_t> factor_offsets(const TableContents& contents) {
    std::vector<uint64_t> offsets{0};
    for (const DeviceParameter& parameter : contents.parameters) {
      const uint64_t rows = contents.has_factors ? parameter.rows : 0;
      const uint64_t columns = rows == 0 ? 0 : parameter.elements / rows;
      offsets.push_back(offsets.back() + rows * norm_segments(columns) +
                        norm_segments(rows) * columns);
    }
    return offsets;
  }

  // The table whose image lies at `begin`.
  static void complete(TableSlot& slot, const TableContents& contents, const std::byte* begin) {
    const auto& [parameters, numbers, states, has_norms, has_factors] = contents;
    const Image image(contents);
    const size_t blocks = count_blocks(parameters);
    std::byte* const behind = slot.memory.device() + image.scalars();
    DeviceTable& table = slot.table.step;
    table = {.parameters = reinterpret_cast<const DeviceParameter*>(begin),
             .blocks = reinterpret_cast<const BlockWork*>(begin + image.blocks),
             .norms = {},
             .factors = {},
             .scalars = nullptr,
             .block_count = static_cast<uint32_t>(blocks),
             .state_mask = states};
    slot.table.own = {.numbers = nullptr,
                      .parameter_count = static_cast<uint32_t>(parameters.size())};
    if (!numbers.empty()) {
      slot.table.own.numbers = reinterpret_cast<const DeviceNumbers*>(begin + image.numbers);
    }
    if (contents.has_scalars()) table.scalars = reinterpret_cast<RuleScalars*>(behind);
    auto* const sums = reinterpret_cast<float*>(behind + parameters.size() * sizeof(RuleScalars));
    if (has_norms) table.norms = {sums, sums + blocks * kBlockSegments};
    if (has_factors) {
      table.factors = {sums, reinterpret_cast<const uint64_t*>(begin + image.offsets)};
    }
    slot.has_norms = has_norms;
    slot.has_factors = has_factors;
    slot.numbers.assign(numbers.begin(), numbers.end());
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
  std::vector<std::unique_ptr<TableSlot>> captured_;
  uint64_t clock_ = 0;
};

StepLauncher::StepLauncher(TablePlace place) : impl_(std::make_unique<Impl>(place)) {}
StepLauncher::~StepLauncher() = default;

void StepLauncher::launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
                          StreamHandle stream) {
  impl_->launch(key, parameters, {}, static_cast<cudaStream_t>(stream));
}

void StepLauncher::launch(const LaunchKey& key, std::span<const DeviceParameter> parameters,
                          std::span<const DeviceNumbers> numbers, StreamHandle stream) {
  if (numbers.size() != parameters.size()) {
    fail(ErrorKind::kValue, kWho, numbers.size(), " entries of numbers for ", parameters.size(),
         " parameters; give one for each");
  }
  impl_->launch(key, parameters, numbers, static_cast<cudaStream_t>(stream));
}

}  // namespace outboard::gpu
