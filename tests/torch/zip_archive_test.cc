// The container of checkpoint files alone: round trips, alignment, and sizes beyond 32 bits.
#include "offload/checkpoint/zip_archive.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "offload/checkpoint/file_mapping.h"
#include "outboard/error.h"

namespace outboard {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(ZipArchive, RecordsComeBackAligned) {
  std::string file;
  ZipWriter writer(
      [&](const void* data, size_t count) { file.append(static_cast<const char*>(data), count); });
  for (size_t length = 0; length < 200; ++length) {
    writer.add("folder/" + std::to_string(length), bytes_of(std::string(length, 'x')));
  }
  writer.finish();
  const ZipReader reader("file", bytes_of(file));
  for (size_t length = 0; length < 200; ++length) {
    const auto record = reader.record(std::to_string(length));
    EXPECT_EQ(record.size(), length);
    EXPECT_EQ((record.data() - bytes_of(file).data()) % 64, 0) << length;
  }
  EXPECT_THROW((void)reader.record("200"), Error);
}

TEST(ZipArchive, TwoRecordsOfOneNameAreRefused) {
  std::string file;
  ZipWriter writer(
      [&](const void* data, size_t count) { file.append(static_cast<const char*>(data), count); });
  writer.add("folder/a", {});
  writer.add("folder/a", {});
  writer.finish();
  EXPECT_THROW(ZipReader("file", bytes_of(file)), Error);
}

// A sparse file: the large record is a hole of zeros, which takes neither memory nor disk.
TEST(ZipArchive, RecordsBeyondFourGibibytesComeBack) {
  constexpr size_t kLarge = (size_t{4} << 30) + 12345;
  void* zeros =
      ::mmap(nullptr, kLarge, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(zeros, MAP_FAILED);
  const std::string path = testing::TempDir() + "/zip_archive_large";
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  ASSERT_GE(file, 0);
  ZipWriter writer([&](const void* data, size_t count) {
    if (count == kLarge) {
      ASSERT_GE(::lseek(file, kLarge, SEEK_CUR), 0);
    } else {
      ASSERT_EQ(::write(file, data, count), static_cast<ssize_t>(count));
    }
  });
  writer.add("folder/large", {static_cast<const std::byte*>(zeros), kLarge});
  writer.add("folder/after", bytes_of("after"));
  writer.finish();
  ::close(file);
  ::munmap(zeros, kLarge);
  {
    const FileMapping mapping(path);
    const ZipReader reader(path, mapping.bytes());
    EXPECT_EQ(reader.record("large").size(), kLarge);
    EXPECT_EQ(std::to_integer<char>(reader.record("after")[0]), 'a');
  }
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace outboard
