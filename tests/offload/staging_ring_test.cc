// The ring of staging slots: bounded, blocking, and one holder per slot.
#include "offload/memory/staging_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <latch>
#include <optional>
#include <set>
#include <thread>
#include <type_traits>
#include <vector>

#include "outboard/error.h"

namespace outboard {
namespace {

using ::testing::HasSubstr;

constexpr size_t kSlotBytes = 4096;

struct Ring {
  explicit Ring(size_t slots) : ring(memory, slots, kSlotBytes) { memory.commit(); }
  HostMemory memory;
  StagingRing ring;
};

ErrorKind kind_thrown(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.kind();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorKind::kValue;
}

// Returns when `count` threads are blocked in acquire(): a state of the ring, not a length of time.
void await_waiting(const StagingRing& ring, size_t count) {
  while (ring.waiting() != count) std::this_thread::yield();
}

static_assert(!std::is_copy_constructible_v<StagingRing::Slot>);
static_assert(!std::is_copy_assignable_v<StagingRing::Slot>);
static_assert(std::is_nothrow_move_constructible_v<StagingRing::Slot>);

TEST(StagingRing, HandsOutSeparateWritableSlots) {
  Ring fixture(3);
  std::vector<StagingRing::Slot> slots;
  for (int i = 0; i < 3; ++i) {
    slots.push_back(fixture.ring.acquire(kSlotBytes));
    std::memset(slots.back().data(), i + 1, kSlotBytes);
  }
  for (int i = 0; i < 3; ++i) {
    const auto* const bytes = static_cast<const unsigned char*>(slots[i].data());
    for (size_t j = 0; j < kSlotBytes; ++j)
      ASSERT_EQ(bytes[j], i + 1) << "slot " << i << " byte " << j;
  }
}

TEST(StagingRing, GivesNothingWhenEverySlotIsInFlight) {
  Ring fixture(2);
  const StagingRing::Slot first = fixture.ring.acquire(1);
  const StagingRing::Slot second = fixture.ring.acquire(1);
  EXPECT_FALSE(fixture.ring.try_acquire(1).has_value());
  EXPECT_EQ(fixture.ring.in_flight(), 2u);
}

TEST(StagingRing, BlocksWhenEverySlotIsInFlight) {
  Ring fixture(1);
  std::optional<StagingRing::Slot> held = fixture.ring.acquire(1);
  const void* const memory = held->data();
  std::atomic<bool> has_slot = false;
  std::jthread other([&] {
    const StagingRing::Slot slot = fixture.ring.acquire(1);
    has_slot = true;
    EXPECT_EQ(slot.data(), memory);
  });
  await_waiting(fixture.ring, 1);
  EXPECT_FALSE(has_slot);
  held.reset();
  other.join();
  EXPECT_TRUE(has_slot);
  EXPECT_EQ(fixture.ring.blocked(), 1u);
}

TEST(StagingRing, TakesASlotBackFromAnotherThread) {
  Ring fixture(1);
  std::optional<StagingRing::Slot> held = fixture.ring.acquire(1);
  std::jthread([slot = std::move(*held)] { EXPECT_NE(slot.data(), nullptr); }).join();
  held.reset();  // moved from: gives nothing back
  EXPECT_EQ(fixture.ring.in_flight(), 0u);
  EXPECT_TRUE(fixture.ring.try_acquire(1).has_value());
}

TEST(StagingRing, WakesOneWaiterPerSlot) {
  Ring fixture(2);
  std::vector<StagingRing::Slot> held;
  held.push_back(fixture.ring.acquire(1));
  held.push_back(fixture.ring.acquire(1));
  std::latch got(2);
  std::atomic<int> finished = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      const StagingRing::Slot slot = fixture.ring.acquire(1);
      got.arrive_and_wait();  // both hold a slot at the same time
      ++finished;
    });
  }
  await_waiting(fixture.ring, 2);
  held.clear();
  threads.clear();
  EXPECT_EQ(finished, 2);
  EXPECT_EQ(fixture.ring.in_flight(), 0u);
  EXPECT_EQ(fixture.ring.acquired(), 4u);
}

TEST(StagingRing, MoveAssignmentKeepsEveryHandleCounted) {
  Ring fixture(2);
  {
    StagingRing::Slot first = fixture.ring.acquire(1);
    StagingRing::Slot second = fixture.ring.acquire(1);
    first = std::move(second);
    EXPECT_EQ(fixture.ring.in_flight(), 2u);
  }
  EXPECT_EQ(fixture.ring.in_flight(), 0u);
}

TEST(StagingRing, RefusesWhatNoSlotHolds) {
  Ring fixture(1);
  try {
    (void)fixture.ring.acquire(kSlotBytes + 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    EXPECT_THAT(error.what(), HasSubstr("4097 bytes, a slot holds 4096"));
    EXPECT_THAT(error.what(), HasSubstr("slot_bytes"));
  }
  EXPECT_EQ(fixture.ring.in_flight(), 0u);
}

TEST(StagingRing, RefusesEmptyRings) {
  HostMemory memory;
  EXPECT_EQ(kind_thrown([&] { StagingRing(memory, 0, 1); }), ErrorKind::kValue);
  EXPECT_EQ(kind_thrown([&] { StagingRing(memory, 1, 0); }), ErrorKind::kValue);
}

TEST(StagingRing, CloseWakesAndRefusesEveryAcquire) {
  Ring fixture(1);
  const StagingRing::Slot held = fixture.ring.acquire(1);
  std::jthread other(
      [&] { EXPECT_EQ(kind_thrown([&] { (void)fixture.ring.acquire(1); }), ErrorKind::kState); });
  await_waiting(fixture.ring, 1);
  fixture.ring.close();
  other.join();
  EXPECT_EQ(kind_thrown([&] { (void)fixture.ring.acquire(1); }), ErrorKind::kState);
  EXPECT_FALSE(fixture.ring.try_acquire(1).has_value());
}

TEST(StagingRing, CountsItsSlotsAsStaging) {
  Ring fixture(3);
  EXPECT_EQ(fixture.memory.bytes(MemoryKind::kStaging), 3 * kSlotBytes);
}

// Each holder writes the whole slot and reads it back: two holders of one slot would see each other
// (and ThreadSanitizer would say so).
TEST(StagingRing, NeverHasTwoHoldersOfOneSlot) {
  constexpr int kThreads = 6;
  constexpr int kRounds = 500;
  Ring fixture(3);
  std::atomic<int> collisions = 0;
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < kRounds; ++round) {
        const StagingRing::Slot slot = fixture.ring.acquire(kSlotBytes);
        auto* const values = static_cast<int*>(slot.data());
        const int value = thread * kRounds + round;
        for (size_t i = 0; i < kSlotBytes / sizeof(int); ++i) values[i] = value;
        for (size_t i = 0; i < kSlotBytes / sizeof(int); ++i) collisions += values[i] != value;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(collisions, 0);
  EXPECT_EQ(fixture.ring.in_flight(), 0u);
  EXPECT_EQ(fixture.ring.acquired(), static_cast<uint64_t>(kThreads * kRounds));
}

}  // namespace
}  // namespace outboard
