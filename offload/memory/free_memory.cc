// Reads /proc/meminfo and the process's control groups; see free_memory.h.
#include "offload/memory/free_memory.h"

#include <algorithm>
#include <fstream>
#include <string>
#include <string_view>

namespace outboard {

namespace {

using Path = std::filesystem::path;

// The number that a file holds; empty if it is not there, or says "max".
std::optional<size_t> number_in(const Path& file) {
  std::ifstream stream(file);
  size_t value = 0;
  return stream >> value ? std::optional(value) : std::nullopt;
}

std::optional<size_t> available_bytes(const Path& root) {
  std::ifstream lines(root / "proc/meminfo");
  for (std::string line; std::getline(lines, line);) {
    constexpr std::string_view kKey = "MemAvailable:";
    if (line.starts_with(kKey)) return std::stoull(line.substr(kKey.size())) * 1024;
  }
  return std::nullopt;
}

// The innermost group of version 2; the groups above it are the folders above it.
Path group_of_process(const Path& root) {
  std::ifstream lines(root / "proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("0::/")) return line.substr(4);
  }
  return {};
}

std::optional<size_t> least(std::optional<size_t> a, std::optional<size_t> b) {
  return a && b ? std::min(a, b) : a ? a : b;
}

std::optional<size_t> left_by(const Path& limit, const Path& usage) {
  const auto most = number_in(limit);
  if (!most) return std::nullopt;
  const size_t used = number_in(usage).value_or(0);
  return *most > used ? *most - used : 0;
}

}  // namespace

std::optional<size_t> free_host_bytes(const Path& root) {
  const Path groups = root / "sys/fs/cgroup";
  // Version 1 says "no limit" by a number beyond every memory, which is the least of nothing.
  auto least_left = least(available_bytes(root), left_by(groups / "memory/memory.limit_in_bytes",
                                                         groups / "memory/memory.usage_in_bytes"));
  for (Path group = group_of_process(root);; group = group.parent_path()) {
    const Path folder = groups / group;
    least_left = least(least_left, left_by(folder / "memory.max", folder / "memory.current"));
    if (group.empty()) return least_left;
  }
}

}  // namespace outboard
