// Slabs: exact sizes, alignment, registration per slab.
#include "offload/memory/host_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <memory>
#include <vector>

#include "tests/offload/pinning_device.h"

namespace outboard {
namespace {

using ::testing::IsEmpty;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kHasSanitizer = true;  // its shadow memory counts as ours
#else
constexpr bool kHasSanitizer = false;
#endif

constexpr size_t kMiB = size_t{1} << 20;

TEST(HostMemory, ArraysAreZeroAndWritable) {
  HostMemory memory;
  std::vector<HostArray> arrays;
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{4097}, 3 * kMiB, 9 * kMiB + 5}) {
    for (const bool transfer : {false, true}) {
      arrays.push_back(memory.reserve(bytes, MemoryKind::kState, transfer));
    }
  }
  memory.commit();
  for (size_t i = 0; i < arrays.size(); ++i) {
    char* const bytes = arrays[i].as<char>();
    ASSERT_TRUE(std::all_of(bytes, bytes + arrays[i].bytes(), [](char c) { return c == 0; }));
    std::fill_n(bytes, arrays[i].bytes(), static_cast<char>(i + 1));
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    char* const bytes = arrays[i].as<char>();
    EXPECT_TRUE(std::all_of(bytes, bytes + arrays[i].bytes(),
                            [&](char c) { return c == static_cast<char>(i + 1); }))
        << "array " << i << " shares bytes with another";
  }
}

TEST(HostMemory, AlignsArrays) {
  HostMemory memory;
  std::vector<HostArray> arrays;
  for (const size_t bytes : {size_t{1}, size_t{100}, size_t{256} << 10, size_t{7}, kMiB + 1}) {
    arrays.push_back(memory.reserve(bytes, MemoryKind::kMasters, false));
  }
  memory.commit();
  for (const HostArray& array : arrays) {
    const size_t alignment = array.bytes() >= size_t{256} << 10 ? 4096 : 64;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(array.data()) % alignment, 0u) << array.bytes();
  }
}

TEST(HostMemory, EveryPageIsResidentAfterCommit) {
  HostMemory memory;
  const HostArray array = memory.reserve(11 * kMiB, MemoryKind::kState, false);
  memory.commit();
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident(std::max<size_t>(1, array.bytes() / page));
  ASSERT_EQ(::mincore(array.data(), array.bytes(), resident.data()), 0);
  EXPECT_TRUE(std::all_of(resident.begin(), resident.end(), [](auto r) { return (r & 1) != 0; }));
}

TEST(HostMemory, CountsBytesByKind) {
  HostMemory memory;
  (void)memory.reserve(1000, MemoryKind::kWeights, true);
  (void)memory.reserve(500, MemoryKind::kWeights, false);
  (void)memory.reserve(77, MemoryKind::kAccumulators, false);
  EXPECT_EQ(memory.bytes(MemoryKind::kWeights), 0u);
  memory.commit();
  EXPECT_EQ(memory.bytes(MemoryKind::kWeights), 1500u);
  EXPECT_EQ(memory.bytes(MemoryKind::kAccumulators), 77u);
  EXPECT_EQ(memory.bytes(MemoryKind::kState), 0u);
  (void)memory.reserve(23, MemoryKind::kAccumulators, false);
  memory.commit();
  EXPECT_EQ(memory.bytes(MemoryKind::kAccumulators), 100u);
}

TEST(HostMemory, EmptyArraysAndEmptyCommitsAreFine) {
  HostMemory memory;
  memory.commit();
  const HostArray empty = memory.reserve(0, MemoryKind::kState, true);
  memory.commit();
  EXPECT_EQ(empty.data(), nullptr);
  EXPECT_EQ(memory.mapped_bytes(), 0u);
  EXPECT_EQ(HostArray().data(), nullptr);
}

TEST(HostMemory, TransferArraysLieInOneRegisteredRangeEach) {
  const auto device = std::make_shared<PinningDevice>();
  HostMemory memory(device, true, 3, 4 * kMiB);
  std::vector<HostArray> transfer, plain;
  for (size_t i = 0; i < 20; ++i) {
    transfer.push_back(memory.reserve(kMiB + i * 100, MemoryKind::kWeights, true));
    plain.push_back(memory.reserve(kMiB + i * 100, MemoryKind::kState, false));
  }
  transfer.push_back(memory.reserve(9 * kMiB, MemoryKind::kWeights, true));
  memory.commit();
  for (const HostArray& array : transfer) EXPECT_EQ(device->touched_by(array), 1);
  for (const HostArray& array : plain) EXPECT_EQ(device->touched_by(array), 0);
  EXPECT_EQ(device->ranges().size(), 8u) << "3 arrays of just over 1 MiB share a slab of 4 MiB";
  EXPECT_THAT(memory.warning(), IsEmpty());
}

TEST(HostMemory, PinnedBytesAreWhatTheDeviceHolds) {
  const auto device = std::make_shared<PinningDevice>();
  {
    HostMemory memory(device);
    (void)memory.reserve(5 * kMiB + 1, MemoryKind::kWeights, true);
    (void)memory.reserve(3 * kMiB, MemoryKind::kState, false);
    memory.commit();
    ASSERT_EQ(device->ranges().size(), 1u);
    EXPECT_EQ(memory.pinned_bytes(), device->ranges()[0].second);
    EXPECT_EQ(memory.pinned_bytes(), 5 * kMiB + 4096);
    EXPECT_EQ(memory.mapped_bytes(), 8 * kMiB + 4096);
  }
  EXPECT_THAT(device->ranges(), IsEmpty());
}

TEST(HostMemory, LaterCommitsLeaveEarlierArraysAlone) {
  HostMemory memory;
  const HostArray first = memory.reserve(kMiB, MemoryKind::kState, false);
  memory.commit();
  void* const address = first.data();
  first.as<char>()[kMiB - 1] = 7;
  for (int i = 0; i < 30; ++i) {
    (void)memory.reserve(kMiB, MemoryKind::kState, false);
    memory.commit();
  }
  EXPECT_EQ(first.data(), address);
  EXPECT_EQ(first.as<char>()[kMiB - 1], 7);
}

TEST(HostMemory, NothingIsPinnedUnlessAskedFor) {
  const auto device = std::make_shared<PinningDevice>();
  HostMemory unpinned(device, false);
  HostMemory without_device(nullptr, true);
  for (HostMemory* const memory : {&unpinned, &without_device}) {
    (void)memory->reserve(kMiB, MemoryKind::kWeights, true);
    memory->commit();
    EXPECT_EQ(memory->pinned_bytes(), 0u);
    EXPECT_THAT(memory->warning(), IsEmpty());
  }
  EXPECT_EQ(device->calls(), 0u);
}

size_t resident_bytes() {
  size_t total = 0;
  size_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

TEST(HostMemory, ResidentSetIsWhatWasAskedFor) {
  if (kHasSanitizer) GTEST_SKIP() << "sanitizers keep shadow memory";
  const size_t before = resident_bytes();
  HostMemory memory(nullptr, false, 2, 5 * kMiB);
  size_t asked = 0;
  for (int i = 0; i < 12; ++i) {  // each slab ends a little beyond a huge page
    asked += 4 * kMiB + 5000;
    (void)memory.reserve(4 * kMiB + 5000, MemoryKind::kState, i % 2 == 0);
  }
  memory.commit();
  const double ratio = static_cast<double>(resident_bytes() - before) / static_cast<double>(asked);
  EXPECT_GE(ratio, 0.99);
  EXPECT_LE(ratio, 1.05);
}

}  // namespace
}  // namespace outboard
