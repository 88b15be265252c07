// open, fstat, mmap; see file_mapping.h.
#include "offload/checkpoint/file_mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "outboard/error.h"

namespace outboard {
namespace {

[[noreturn]] void refuse(const std::string& path, const char* action, int error) {
  fail(ErrorKind::kFile, "FileMapping", "cannot ", action, " ", path, ": ",
       std::generic_category().message(error), "; give the path of a readable file");
}

}  // namespace

FileMapping::FileMapping(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) refuse(path, "open", errno);
  struct stat about = {};
  int error = ::fstat(descriptor, &about) != 0 ? errno : 0;
  if (error == 0 && !S_ISREG(about.st_mode)) error = EISDIR;
  const auto size = static_cast<size_t>(about.st_size);
  void* memory = nullptr;
  if (error == 0 && size > 0) {
    memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (memory == MAP_FAILED) error = errno;
  }
  ::close(descriptor);
  if (error != 0) refuse(path, "read", error);
  bytes_ = {static_cast<const std::byte*>(memory), size};
}

FileMapping::~FileMapping() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace outboard
