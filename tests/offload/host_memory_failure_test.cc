// What HostMemory does when the system or the device refuses: clear errors, nothing changed or
// leaked.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "offload/memory/host_memory.h"
#include "outboard/error.h"
#include "tests/offload/pinning_device.h"

namespace outboard {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kHasSanitizer = true;  // its shadow memory counts as ours
#else
constexpr bool kHasSanitizer = false;
#endif

constexpr size_t kMiB = size_t{1} << 20;

std::string message_of(const std::function<void()>& call, ErrorKind kind) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(HostMemory, RollbackForgetsReservations) {
  HostMemory memory;
  (void)memory.reserve(kMiB, MemoryKind::kState, false);
  memory.rollback();
  memory.commit();
  EXPECT_EQ(memory.mapped_bytes(), 0u);
  EXPECT_EQ(memory.bytes(MemoryKind::kState), 0u);
}

TEST(HostMemory, RefusedMappingChangesNothing) {
  const auto device = std::make_shared<PinningDevice>();
  HostMemory memory(device);
  const HostArray held = memory.reserve(2 * kMiB, MemoryKind::kWeights, true);
  memory.commit();
  held.as<char>()[0] = 9;
  (void)memory.reserve(kMiB, MemoryKind::kWeights, true);
  (void)memory.reserve(size_t{1} << 48, MemoryKind::kState, false);
  const std::string text = message_of([&] { memory.commit(); }, ErrorKind::kMemory);
  EXPECT_THAT(text, HasSubstr("[HostMemory] 281474977759232 bytes (262144.00 GiB) asked for"));
  EXPECT_THAT(text, HasSubstr("2097152 bytes (2.00 MiB) held"));
  EXPECT_THAT(text, HasSubstr("Cannot allocate memory"));
  EXPECT_EQ(held.as<char>()[0], 9);
  EXPECT_EQ(memory.mapped_bytes(), 2 * kMiB);
  EXPECT_EQ(device->ranges().size(), 1u);
  const HostArray next = memory.reserve(100, MemoryKind::kState, false);
  memory.commit();
  EXPECT_EQ(memory.bytes(MemoryKind::kState), 100u);
  EXPECT_NE(next.data(), nullptr);
}

TEST(HostMemory, SizesThatOverflowAreRefused) {
  HostMemory memory;
  (void)memory.reserve(100, MemoryKind::kState, false);
  const size_t most = std::numeric_limits<size_t>::max();
  (void)message_of([&] { (void)memory.reserve(most, MemoryKind::kState, false); },
                   ErrorKind::kMemory);
  (void)message_of([&] { (void)memory.reserve(most / 4, MemoryKind::kState, false); },
                   ErrorKind::kMemory);
  memory.commit();
  EXPECT_EQ(memory.bytes(MemoryKind::kState), 100u);
}

TEST(HostMemory, AddressSpaceLimitIsAnErrorThatNamesIt) {
  if (kHasSanitizer) GTEST_SKIP() << "sanitizers need address space of their own";
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit = {.rlim_cur = size_t{2} << 30, .rlim_max = size_t{2} << 30};
    ::setrlimit(RLIMIT_AS, &limit);
    HostMemory memory(nullptr, false, 1);
    (void)memory.reserve(size_t{3} << 30, MemoryKind::kState, false);
    try {
      memory.commit();
    } catch (const Error& error) {
      const std::string text = error.what();
      const bool is_clear = text.find("RLIMIT_AS is 2147483648 bytes") != std::string::npos &&
                            memory.mapped_bytes() == 0;
      ::_exit(error.kind() == ErrorKind::kMemory && is_clear ? 0 : 2);
    }
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(HostMemory, RefusedRegistrationGoesOnPageableWithOneWarning) {
  const auto device = std::make_shared<PinningDevice>();
  device->answer = [](size_t calls) { return calls <= 2; };
  HostMemory memory(device, true, 1, 4 * kMiB);
  std::vector<HostArray> arrays;
  for (int i = 0; i < 5; ++i)
    arrays.push_back(memory.reserve(4 * kMiB, MemoryKind::kWeights, true));
  memory.commit();
  for (const HostArray& array : arrays) array.as<char>()[4 * kMiB - 1] = 1;
  EXPECT_EQ(memory.pinned_bytes(), 8 * kMiB);
  EXPECT_EQ(device->calls(), 3u) << "one refusal stands for all";
  const std::string warning = memory.warning();
  EXPECT_THAT(warning, HasSubstr("12582912 bytes"));
  EXPECT_THAT(warning, HasSubstr("RLIMIT_MEMLOCK is "));
  EXPECT_THAT(warning, HasSubstr("ulimit -l"));
  (void)memory.reserve(8 * kMiB, MemoryKind::kWeights, true);
  memory.commit();
  EXPECT_EQ(memory.warning(), warning);
}

TEST(HostMemory, FailureWhileRegisteringReleasesEverything) {
  const auto device = std::make_shared<PinningDevice>();
  device->answer = [](size_t calls) {
    if (calls == 3) fail(ErrorKind::kDevice, "PinningDevice", "lost; get another");
    return true;
  };
  HostMemory memory(device, true, 2, 4 * kMiB);
  for (int i = 0; i < 5; ++i) (void)memory.reserve(4 * kMiB, MemoryKind::kWeights, true);
  EXPECT_THAT(message_of([&] { memory.commit(); }, ErrorKind::kDevice), HasSubstr("lost"));
  EXPECT_THAT(device->ranges(), IsEmpty());
  EXPECT_EQ(memory.mapped_bytes(), 0u);
  EXPECT_EQ(memory.bytes(MemoryKind::kWeights), 0u);
}

}  // namespace
}  // namespace outboard
