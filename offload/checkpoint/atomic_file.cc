// System calls behind AtomicFile: exclusive temporary, full writes, fsync, rename, fsync of the
// directory. Temporaries are `.<name>.<number>.partial`, locked while their writer lives;
// outboard.save does the same, so that each removes what the other left.
#include "offload/checkpoint/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>

#include "outboard/error.h"

namespace outboard {
namespace {

constexpr const char* kWho = "AtomicFile";
constexpr std::string_view kSuffix = ".partial";
constexpr int kNameAttempts = 100;
// Linux writes at most 0x7ffff000 bytes per call; 1 GiB keeps offsets aligned.
constexpr size_t kWriteBytes = size_t{1} << 30;

std::string reason(int error) { return std::generic_category().message(error); }

const char* advice(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return "free space or choose another disk; the file that was there is unchanged";
    case EACCES:
    case EPERM:
    case EROFS:
      return "choose a folder that this process may write to";
    case ENOENT:
    case ENOTDIR:
      return "create the folder first";
    default:
      return "the file that was there is unchanged";
  }
}

// A link keeps pointing where it points: the version behind it is what is replaced.
std::string behind_link(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_symlink(path, ignored)) return path;
  const std::filesystem::path target = std::filesystem::canonical(path, ignored);
  return ignored ? path : target.string();
}

std::string temporary_prefix(const std::filesystem::path& path) {
  return std::string(".").append(path.filename().string()).append(".");
}

// Whoever may not lock a temporary has a writer before him, or a file system without locks.
void remove_if_abandoned(const std::filesystem::path& temporary) {
  const int descriptor = ::open(temporary.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return;
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(temporary.c_str());
  ::close(descriptor);
}

void remove_leftovers(const std::filesystem::path& path) {
  const std::string prefix = temporary_prefix(path);
  const std::filesystem::path parent = path.parent_path();
  std::error_code error;
  std::filesystem::directory_iterator entry(parent.empty() ? "." : parent, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(prefix) && name.ends_with(kSuffix)) remove_if_abandoned(entry->path());
  }
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(behind_link(path)) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path_, ignored)) {
    fail(ErrorKind::kFile, kWho, path_, " is a folder; give the path of a file");
  }
  remove_leftovers(path_);
  create_temporary();
  struct stat old = {};
  if (::stat(path_.c_str(), &old) == 0) {
    // A private checkpoint must not become readable by being saved again.
    if (::fchmod(descriptor_, old.st_mode & 07777) != 0)
      fail_and_discard("set the mode of", errno, 0);
  }
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::create_temporary() {
  const std::filesystem::path path = path_;
  std::random_device number;
  for (int attempt = 0; attempt < kNameAttempts; ++attempt) {
    const std::string name = temporary_prefix(path) + std::to_string(number());
    temporary_ = (path.parent_path() / name).string().append(kSuffix);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST && errno != EINTR) break;
    if (descriptor_ < 0) continue;
    ::flock(descriptor_, LOCK_EX);  // without locks, nobody removes anything
    if (::access(temporary_.c_str(), F_OK) == 0) return;
    ::close(std::exchange(descriptor_, -1));  // removed as a leftover before it was locked
    errno = EEXIST;
  }
  const int error = errno;
  fail(ErrorKind::kFile, kWho, "cannot create ", temporary_, " to replace ", path_, ": ",
       reason(error), "; ", advice(error));
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)),
      written_(other.written_) {}

void AtomicFile::write(const void* bytes, size_t count) {
  check_open("write");
  const char* next = static_cast<const char*>(bytes);
  for (size_t left = count; left > 0;) {
    const ssize_t done = ::write(descriptor_, next, left < kWriteBytes ? left : kWriteBytes);
    if (done < 0 && errno == EINTR) continue;
    // A regular file that takes nothing is full, whatever errno says.
    if (done <= 0) fail_and_discard("write", done < 0 ? errno : ENOSPC, count);
    next += done;
    left -= static_cast<size_t>(done);
    written_ += static_cast<uint64_t>(done);
  }
}

void AtomicFile::commit() {
  check_open("commit");
  if (::fsync(descriptor_) != 0) fail_and_discard("sync", errno, 0);
  // Network file systems report a full disk only here. The descriptor is gone whatever close says.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail_and_discard("close", errno, 0);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_and_discard("rename", errno, 0);
  temporary_.clear();
  sync_directory();
}

void AtomicFile::check_open(const char* action) const {
  if (descriptor_ < 0) {
    fail(ErrorKind::kState, kWho, "cannot ", action, " ", path_,
         ": it was committed, moved from or has failed; create a new AtomicFile");
  }
}

void AtomicFile::fail_and_discard(const char* action, int error, size_t count) {
  discard();
  fail(ErrorKind::kFile, kWho, "cannot ", action, " ", path_, " (", count, " bytes after ",
       written_, " written): ", reason(error), "; ", advice(error));
}

void AtomicFile::discard() noexcept {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::sync_directory() const {
  const std::string parent = std::filesystem::path(path_).parent_path().string();
  const int directory =
      ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // Without read permission on the folder, or on file systems that cannot sync one, the rename is
  // as durable as it gets.
  if (directory < 0) return;
  const int result = ::fsync(directory);
  const int error = errno;
  ::close(directory);
  if (result != 0 && error != EINVAL && error != ENOTSUP) {
    fail(ErrorKind::kFile, kWho, path_,
         " is replaced, but syncing its folder failed: ", reason(error),
         "; it may be the old version again after a power cut");
  }
}

}  // namespace outboard
