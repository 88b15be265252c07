// The driver thread: order, results, failures, its end.
#include "offload/driver.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace outboard {
namespace {

TEST(Driver, RunsWorkInTheOrderInWhichItWasPosted) {
  Driver driver;
  std::vector<int> ran;
  for (int i = 0; i < 100; ++i) driver.post([&ran, i] { ran.push_back(i); });
  driver.drain();
  ASSERT_EQ(ran.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(ran[static_cast<size_t>(i)], i);
}

TEST(Driver, RunsOnAThreadOfItsOwn) {
  Driver driver;
  EXPECT_NE(driver.submit([] { return std::this_thread::get_id(); }).get(),
            std::this_thread::get_id());
}

TEST(Driver, RethrowsTheFirstFailureOnce) {
  Driver driver;
  bool has_gone_on = false;
  driver.post([] { throw std::runtime_error("first"); });
  driver.post([] { throw std::runtime_error("second"); });
  driver.post([&has_gone_on] { has_gone_on = true; });
  driver.drain();
  EXPECT_TRUE(has_gone_on);
  try {
    driver.rethrow_failure();
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(std::string(error.what()), "first");
  }
  EXPECT_NO_THROW(driver.rethrow_failure());
}

TEST(Driver, SubmittedFailuresBelongToTheirFuture) {
  Driver driver;
  auto failed = driver.submit([]() -> int { throw std::runtime_error("mine"); });
  EXPECT_THROW(failed.get(), std::runtime_error);
  EXPECT_NO_THROW(driver.rethrow_failure());
}

TEST(Driver, EndsAfterWhatWasPosted) {
  std::atomic<int> ran = 0;
  {
    Driver driver;
    for (int i = 0; i < 50; ++i) driver.post([&ran] { ++ran; });
  }
  EXPECT_EQ(ran, 50);
}

TEST(Driver, TakesWorkFromManyThreads) {
  Driver driver;
  int ran = 0;  // the driver's thread alone touches it
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) driver.post([&ran] { ++ran; });
    });
  }
  threads.clear();
  driver.drain();
  EXPECT_EQ(ran, 400);
}

}  // namespace
}  // namespace outboard
