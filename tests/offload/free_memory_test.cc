// What can still be had of host memory, from files as the system writes them.
#include "offload/memory/free_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace outboard {
namespace {

constexpr const char* kMeminfo =
    "MemTotal:       1000 kB\nMemFree:          10 kB\nMemAvailable:    600 kB\n";

class FreeMemory : public ::testing::Test {
 protected:
  ~FreeMemory() override { std::filesystem::remove_all(root_); }

  void write(const std::string& name, const std::string& text) {
    const auto path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  void write_group(const std::string& folder, const std::string& most, const std::string& used) {
    write("sys/fs/cgroup/" + folder + "memory.max", most + "\n");
    write("sys/fs/cgroup/" + folder + "memory.current", used + "\n");
  }

  std::filesystem::path root_ = std::filesystem::temp_directory_path() /
                                ("free_memory_" + std::to_string(::getpid()) + "_" +
                                 ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(FreeMemory, OfASystemThatSaysNothingIsUnknown) {
  EXPECT_EQ(free_host_bytes(root_), std::nullopt);
}

TEST_F(FreeMemory, IsWhatIsAvailableAndNotWhatIsUnused) {
  write("proc/meminfo", kMeminfo);
  EXPECT_EQ(free_host_bytes(root_), 600u * 1024);
}

TEST_F(FreeMemory, IsWhatTheTightestOfTheGroupsLeaves) {
  write("proc/meminfo", kMeminfo);
  write("proc/self/cgroup", "1:cpu:/elsewhere\n0::/outer/inner\n");
  write_group("outer/inner/", "max", "5000");
  write_group("outer/", "400000", "100000");
  write_group("elsewhere/", "1000", "0");
  EXPECT_EQ(free_host_bytes(root_), 300000u);
  write_group("outer/inner/", "200000", "5000");
  EXPECT_EQ(free_host_bytes(root_), 195000u);
  write_group("outer/inner/", "200000", "200001");
  EXPECT_EQ(free_host_bytes(root_), 0u);
}

TEST_F(FreeMemory, IsAvailableWhereNoGroupHasALimit) {
  write("proc/meminfo", kMeminfo);
  write("proc/self/cgroup", "0::/\n");
  write_group("", "max", "5000");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n");
  EXPECT_EQ(free_host_bytes(root_), 600u * 1024);
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "105000\n");
  EXPECT_EQ(free_host_bytes(root_), 100000u);
}

TEST_F(FreeMemory, OfThisMachineIsKnown) { EXPECT_GT(free_host_bytes().value_or(0), 0u); }

}  // namespace
}  // namespace outboard
