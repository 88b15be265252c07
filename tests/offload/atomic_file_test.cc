// Saving replaces a file whole or not at all: under errors, a full disk and a killed process.
#include "offload/checkpoint/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <type_traits>
#include <vector>

#include "outboard/error.h"

namespace outboard {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

static_assert(!std::is_copy_constructible_v<AtomicFile>);
static_assert(std::is_nothrow_move_constructible_v<AtomicFile>);

class AtomicFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) /
              (std::string("outboard_") + info->name() + "_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    path_ = (folder_ / "checkpoint").string();
  }
  void TearDown() override { fs::remove_all(folder_); }

  void save(const std::string& text) const {
    AtomicFile file(path_);
    file.write(text.data(), text.size());
    file.commit();
  }
  [[nodiscard]] std::string content() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      found.push_back(entry.path().filename().string());
    }
    return found;
  }

  fs::path folder_;
  std::string path_;
};

// Runs `body` in a child process whose limits and death are its own; its exit code, or minus its
// signal.
template <class Body>
int in_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST_F(AtomicFileTest, CommitShowsEverythingWritten) {
  AtomicFile file(path_);
  file.write("first ", 6);
  file.write("second", 6);
  file.write(nullptr, 0);
  EXPECT_FALSE(fs::exists(path_));
  file.commit();
  EXPECT_EQ(content(), "first second");
  EXPECT_EQ(file.bytes_written(), 12u);
  EXPECT_THAT(names(), ::testing::ElementsAre("checkpoint"));
}

TEST_F(AtomicFileTest, OldVersionStaysUntilCommit) {
  save("old");
  AtomicFile file(path_);
  file.write("new!", 4);
  EXPECT_EQ(content(), "old");
  file.commit();
  EXPECT_EQ(content(), "new!");
}

TEST_F(AtomicFileTest, WithoutCommitNothingChanges) {
  save("old");
  {
    AtomicFile file(path_);
    file.write("new", 3);
  }
  EXPECT_EQ(content(), "old");
  EXPECT_THAT(names(), ::testing::ElementsAre("checkpoint"));
}

TEST_F(AtomicFileTest, MovedFileIsCommittedOnce) {
  AtomicFile first(path_);
  first.write("text", 4);
  AtomicFile second(std::move(first));
  second.commit();
  EXPECT_EQ(content(), "text");
  EXPECT_THROW(second.commit(), Error);
  EXPECT_THROW(second.write("x", 1), Error);
}

TEST_F(AtomicFileTest, MissingFolderIsNamed) {
  try {
    AtomicFile file((folder_ / "missing" / "checkpoint").string());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFile);
    EXPECT_THAT(error.what(), HasSubstr("missing/checkpoint"));
    EXPECT_THAT(error.what(), HasSubstr("No such file or directory"));
  }
}

TEST_F(AtomicFileTest, FolderInPlaceOfFileIsRefused) {
  fs::create_directory(path_);
  EXPECT_THROW(AtomicFile file(path_), Error);
  EXPECT_THAT(names(), ::testing::ElementsAre("checkpoint"));
}

TEST_F(AtomicFileTest, FolderWithoutPermissionIsRefused) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_THROW(AtomicFile file(path_), Error);
  fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(AtomicFileTest, KeepsPermissionsOfTheOldVersion) {
  save("old");
  ::chmod(path_.c_str(), 0600);
  save("new");
  struct stat status = {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(AtomicFileTest, ReplacesWhatALinkPointsTo) {
  save("old");
  const fs::path link = folder_ / "latest";
  fs::create_symlink("checkpoint", link);
  AtomicFile file(link.string());
  file.write("new", 3);
  file.commit();
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(content(), "new");
}

// A file size limit makes write() fail in the middle, as a full disk does.
TEST_F(AtomicFileTest, FullDiskKeepsTheOldVersion) {
  save("old");
  const int exit_code = in_child([this] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {.rlim_cur = 100000, .rlim_max = 100000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::vector<char> bytes(60000, 'x');
    try {
      AtomicFile file(path_);
      file.write(bytes.data(), bytes.size());
      file.write(bytes.data(), bytes.size());
      return 1;
    } catch (const Error& error) {
      const std::string text = error.what();
      const bool is_clear = error.kind() == ErrorKind::kFile &&
                            text.find(path_) != std::string::npos &&
                            text.find("File too large") != std::string::npos &&
                            text.find("60000 bytes after 100000 written") != std::string::npos;
      return is_clear ? 0 : 2;
    }
  });
  EXPECT_EQ(exit_code, 0);
  EXPECT_EQ(content(), "old");
  EXPECT_THAT(names(), ::testing::ElementsAre("checkpoint"));
}

TEST_F(AtomicFileTest, AfterAFailureOnlyDestructionIsLeft) {
  save("old");
  const int exit_code = in_child([this] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {.rlim_cur = 10, .rlim_max = 10};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    AtomicFile file(path_);
    try {
      file.write("more than ten bytes", 19);
      return 1;
    } catch (const Error&) {
    }
    try {
      file.commit();
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kState ? 0 : 2;
    }
    return 3;
  });
  EXPECT_EQ(exit_code, 0);
  EXPECT_EQ(content(), "old");
}

TEST_F(AtomicFileTest, KilledWriterLeavesTheOldVersion) {
  save("old");
  int ready[2] = {};
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(path_);
    const std::vector<char> bytes(1 << 20, 'x');
    for (;;) {
      file.write(bytes.data(), bytes.size());
      if (::write(ready[1], "r", 1) != 1) ::_exit(1);
      if (file.bytes_written() >= 64u << 20) ::pause();
    }
  }
  char told = 0;
  ASSERT_EQ(::read(ready[0], &told, 1), 1);  // it is in the middle of the file
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  ::close(ready[0]);
  ::close(ready[1]);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(content(), "old");
  EXPECT_EQ(names().size(), 2u);
  save("new");  // and what the dead writer left is gone
  EXPECT_EQ(content(), "new");
  EXPECT_THAT(names(), ::testing::ElementsAre("checkpoint"));
}

TEST_F(AtomicFileTest, WritersDoNotDisturbEachOtherOrOtherFiles) {
  std::ofstream(folder_ / ".other.12.partial") << "another checkpoint's";
  std::ofstream(folder_ / "checkpoint.12.partial") << "the user's";
  {
    AtomicFile first(path_);
    first.write("first", 5);
    save("second");
    EXPECT_EQ(content(), "second");
    first.commit();
    EXPECT_EQ(content(), "first");
  }
  EXPECT_THAT(names(), ::testing::UnorderedElementsAre("checkpoint", "checkpoint.12.partial",
                                                       ".other.12.partial"));
}

}  // namespace
}  // namespace outboard
