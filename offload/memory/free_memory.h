// How much host memory can still be had, as the system says. Knows nothing of arrays or parameters.
#ifndef OUTBOARD_OFFLOAD_MEMORY_FREE_MEMORY_H_
#define OUTBOARD_OFFLOAD_MEMORY_FREE_MEMORY_H_

#include <cstddef>
#include <filesystem>
#include <optional>

namespace outboard {

/// Bytes that are available without swapping, or what control groups (version 2, or the limit of
/// version 1) leave to the process if that is less. Empty where the system does not say. Reads some
/// files below `root`, which tests may replace.
[[nodiscard]] std::optional<size_t> free_host_bytes(const std::filesystem::path& root = "/");

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_MEMORY_FREE_MEMORY_H_
