// The container of checkpoint files: a zip archive of stored (never compressed) records, as
// torch.save writes and torch.load reads. Bytes and names only; what records mean lives in
// pickle.h.
#ifndef OUTBOARD_OFFLOAD_CHECKPOINT_ZIP_ARCHIVE_H_
#define OUTBOARD_OFFLOAD_CHECKPOINT_ZIP_ARCHIVE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace outboard {

/// Appends records to a sink. Used by one thread; nothing is kept of a record but its name and
/// checksum.
class ZipWriter {
 public:
  using Sink = std::function<void(const void* bytes, size_t count)>;
  explicit ZipWriter(Sink sink) : sink_(std::move(sink)) {}

  /// Writes one record. Its bytes start at a multiple of 64, so that a mapped file can be used in
  /// place. Exceptions of the sink pass through; the archive is then lost.
  void add(const std::string& name, std::span<const std::byte> bytes);
  /// Writes the directory. Without it the file is no archive.
  void finish();

 private:
  struct Record {
    std::string name;
    uint64_t size;
    uint64_t offset;
    uint32_t crc;
  };
  void write(const std::string& bytes);

  Sink sink_;
  uint64_t position_ = 0;
  std::vector<Record> records_;
};

/// The records of an archive in memory (or a mapped file), which must outlive it. The bytes are
/// treated as hostile: the constructor checks every offset, length and checksum, and throws
/// Error(kFile).
class ZipReader {
 public:
  ZipReader(std::string name, std::span<const std::byte> bytes);

  /// The record `name` below the archive's one folder. Throws Error(kFile) if there is none.
  [[nodiscard]] std::span<const std::byte> record(std::string_view name) const;
  [[nodiscard]] bool has(std::string_view name) const;

 private:
  struct Directory {
    uint64_t offset;
    uint64_t size;
    uint64_t count;
  };
  [[noreturn]] void refuse(const std::string& what) const;
  [[nodiscard]] Directory find_directory() const;
  uint64_t read_entry(uint64_t position, uint64_t end);
  void read_field_64(uint64_t at, uint64_t end, std::initializer_list<uint64_t*> values) const;
  void check_record(const std::string& name, uint64_t offset, uint64_t size, uint32_t crc);
  template <class T>
  [[nodiscard]] T number(uint64_t offset) const;

  std::string name_;
  std::span<const std::byte> bytes_;
  std::map<std::string, std::span<const std::byte>, std::less<>> records_;
  uint64_t total_ = 0;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHECKPOINT_ZIP_ARCHIVE_H_
