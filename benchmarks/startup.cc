// How long the host memory of an optimizer takes to come into being, beside plain code that touches
// and registers the same bytes with the same threads. Prints one JSON line.
//
//   bench_startup [--bytes N] [--rounds N] [--threads N] [--no-device]
//
// The first construction is reported on its own: virtual machines hand out memory that nobody had
// before more slowly. Then baseline and construction take turns on memory that the machine has
// seen.
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "offload/memory/host_memory.h"
#include "outboard/device.h"
#include "outboard/error.h"

namespace outboard {
namespace {

struct Arguments {
  size_t bytes = size_t{1} << 30;
  int rounds = 3;
  int threads = 0;
  bool device = true;
};

double seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

int usable_cores() {
  cpu_set_t cores;
  return ::sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

// The arrays of a bf16 model with split masters and fp32 moments, 14 bytes per element, in
// parameters of 16 Mi elements: weights and gradients are copied, masters and moments are not.
constexpr size_t kElementBytes = 14;
constexpr size_t kTransferElementBytes = 4;
constexpr size_t kParameterElements = size_t{16} << 20;

struct Built {
  size_t mapped = 0;
  size_t pinned = 0;
  std::string warning;
};

struct Timed {
  double seconds = 0;
  std::shared_ptr<void> memory;  // released when this goes
};

Timed construct(const Arguments& arguments, const std::shared_ptr<Device>& device, Built* built) {
  std::shared_ptr<HostMemory> memory;
  const double taken = seconds([&] {
    memory = std::make_shared<HostMemory>(device, true, arguments.threads);
    for (size_t left = arguments.bytes / kElementBytes; left > 0;) {
      const size_t elements = std::min(left, kParameterElements);
      (void)memory->reserve(elements * 2, MemoryKind::kWeights, true);
      (void)memory->reserve(elements * 2, MemoryKind::kGradients, true);
      (void)memory->reserve(elements * 2, MemoryKind::kMasters, false);
      (void)memory->reserve(elements * 4, MemoryKind::kState, false);
      (void)memory->reserve(elements * 4, MemoryKind::kState, false);
      left -= elements;
    }
    memory->commit();
  });
  *built = {memory->mapped_bytes(), memory->pinned_bytes(), memory->warning()};
  return {taken, memory};
}

// What anybody would write: each thread maps its share with huge pages, touches it, registers it.
class PlainShare {
 public:
  PlainShare(size_t bytes, size_t registered, Device* device) : bytes_(bytes), device_(device) {
    memory_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) std::perror("mmap"), std::exit(1);
    ::madvise(memory_, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes; i += 4096) static_cast<volatile char*>(memory_)[i] = 0;
    if (device != nullptr && device->pin(memory_, registered)) registered_ = registered;
  }
  ~PlainShare() {
    if (registered_ > 0) device_->unpin(memory_, registered_);
    ::munmap(memory_, bytes_);
  }
  PlainShare(const PlainShare&) = delete;
  PlainShare& operator=(const PlainShare&) = delete;

 private:
  size_t bytes_;
  Device* device_;
  void* memory_ = nullptr;
  size_t registered_ = 0;
};

Timed plain(const Arguments& arguments, Device* device) {
  const size_t share = round_up(arguments.bytes / static_cast<size_t>(arguments.threads), 4096);
  const size_t registered = round_up(share * kTransferElementBytes / kElementBytes, 4096);
  using Shares = std::vector<std::unique_ptr<PlainShare>>;
  const auto shares = std::make_shared<Shares>(static_cast<size_t>(arguments.threads));
  const double taken = seconds([&] {
    std::vector<std::jthread> threads;
    for (auto& mine : *shares) {
      threads.emplace_back(
          [&, device] { mine = std::make_unique<PlainShare>(share, registered, device); });
    }
  });
  return {taken, shares};
}

std::shared_ptr<Device> device_or_none(bool wanted) {
  if (!wanted) return nullptr;
  try {
    return make_cuda_device(0);
  } catch (const Error&) {
    return nullptr;
  }
}

int run(Arguments arguments) {
  if (arguments.threads <= 0) arguments.threads = usable_cores();
  const std::shared_ptr<Device> device = device_or_none(arguments.device);
  Built built;
  double first = 0;
  double first_plain = 0;
  {
    const Timed held = plain(arguments, device.get());
    first_plain = held.seconds;
    first = construct(arguments, device, &built).seconds;
  }
  double best = 1e30;
  double best_plain = 1e30;
  for (int round = 0; round < arguments.rounds; ++round) {
    best_plain = std::min(best_plain, plain(arguments, device.get()).seconds);
    best = std::min(best, construct(arguments, device, &built).seconds);
  }
  std::printf(
      "{\"benchmark\": \"startup\", \"device\": \"%s\", \"threads\": %d, \"bytes\": %zu, "
      "\"mapped_bytes\": %zu, \"pinned_bytes\": %zu, \"first_seconds\": %.4f, "
      "\"first_plain_seconds\": %.4f, \"seconds\": %.4f, "
      "\"plain_seconds\": %.4f, \"ratio_to_plain\": %.3f, \"gigabytes_per_second\": %.2f}\n",
      device ? "cuda" : "none", arguments.threads, arguments.bytes, built.mapped, built.pinned,
      first, first_plain, best, best_plain, best / best_plain,
      static_cast<double>(built.mapped) / best * 1e-9);
  if (!built.warning.empty()) std::fprintf(stderr, "%s\n", built.warning.c_str());
  return 0;
}

int main_with(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    const bool has_value = i + 1 < count;
    if (name == "--no-device") {
      arguments.device = false;
    } else if (name == "--bytes" && has_value) {
      arguments.bytes = static_cast<size_t>(std::stoull(values[++i]));
    } else if (name == "--rounds" && has_value) {
      arguments.rounds = std::max(1, std::stoi(values[++i]));
    } else if (name == "--threads" && has_value) {
      arguments.threads = std::stoi(values[++i]);
    } else {
      std::fprintf(stderr, "usage: %s [--bytes N] [--rounds N] [--threads N] [--no-device]\n",
                   values[0]);
      return 2;
    }
  }
  return run(arguments);
}

}  // namespace
}  // namespace outboard

int main(int argc, char** argv) { return outboard::main_with(argc, argv); }
