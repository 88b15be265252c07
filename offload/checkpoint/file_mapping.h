// A file's bytes as memory: pages are read when they are looked at. System calls only.
#ifndef OUTBOARD_OFFLOAD_CHECKPOINT_FILE_MAPPING_H_
#define OUTBOARD_OFFLOAD_CHECKPOINT_FILE_MAPPING_H_

#include <cstddef>
#include <span>
#include <string>

namespace outboard {

/// Maps a whole file read-only. A file that somebody truncates while it is mapped ends the process
/// (SIGBUS), as with every mapped file; replacing it by rename is safe.
class FileMapping {
 public:
  /// Throws Error(kFile) with the system's reason.
  explicit FileMapping(const std::string& path);
  ~FileMapping();
  FileMapping(FileMapping&&) = delete;
  FileMapping& operator=(FileMapping&&) = delete;
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHECKPOINT_FILE_MAPPING_H_
