// Writing a file so that its name always shows one complete version: the old or the new. Bytes and
// system calls only; what the bytes mean lives in checkpoint files.
#ifndef OUTBOARD_OFFLOAD_CHECKPOINT_ATOMIC_FILE_H_
#define OUTBOARD_OFFLOAD_CHECKPOINT_ATOMIC_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace outboard {

/// A new version of the file `path`, written to a temporary beside it and moved over it by
/// commit(). Without commit() (exception, early return) the temporary is removed and the old file
/// stays; a process killed before commit() leaves the old file and its temporary, which the next
/// AtomicFile of that path removes. Used by one thread at a time, beside others of the same path.
class AtomicFile {
 public:
  /// Removes what killed processes left and creates the temporary. Follows `path` if it is a
  /// symbolic link and keeps the permissions of a file that is there. Throws Error(kFile).
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends. Throws Error(kFile) with the path, the system's reason and the bytes; the temporary
  /// is then gone and only destruction makes sense.
  void write(const void* bytes, size_t count);
  /// Makes the new version durable and visible under `path`: sync the file, rename, sync the
  /// directory. Throws Error(kFile) as write() does; the old version stays unless only the last
  /// sync failed, which the message says.
  void commit();

  [[nodiscard]] uint64_t bytes_written() const { return written_; }

 private:
  void create_temporary();
  void check_open(const char* action) const;
  [[noreturn]] void fail_and_discard(const char* action, int error, size_t count);
  void discard() noexcept;
  void sync_directory() const;

  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
  uint64_t written_ = 0;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHECKPOINT_ATOMIC_FILE_H_
