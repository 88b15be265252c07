// Memory that notices who steps outside: the array ends where an inaccessible page begins, and
// canary bytes lie before it and in the gap that a misaligned array leaves.
#ifndef OUTBOARD_TESTS_SUPPORT_GUARDED_BUFFER_H_
#define OUTBOARD_TESTS_SUPPORT_GUARDED_BUFFER_H_

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace outboard::testing {

/// `bytes` bytes that begin `shift_bytes` before the last place where they fit. Reading or writing
/// past the gap faults; writing into the gap or before the array shows in is_intact().
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t bytes, size_t shift_bytes = 0) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t usable = (bytes + shift_bytes + kCanaryBytes + page - 1) / page * page;
    mapped_ = usable + page;
    void* map = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<uint8_t*>(map);
    mprotect(base_ + usable, page, PROT_NONE);
    std::fill_n(base_, usable, kCanary);
    end_ = base_ + usable;
    data_ = end_ - shift_bytes - bytes;
    std::fill_n(data_, bytes, uint8_t{0});
  }
  template <class T>
  explicit GuardedBuffer(const std::vector<T>& values, size_t shift_elements = 0)
      : GuardedBuffer(values.size() * sizeof(T), shift_elements * sizeof(T)) {
    std::copy(values.begin(), values.end(), as<T>());
  }
  ~GuardedBuffer() { munmap(base_, mapped_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  template <class T = void>
  [[nodiscard]] T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  [[nodiscard]] std::vector<T> values() const {
    const T* first = reinterpret_cast<const T*>(data_);
    return {first, first + bytes_ / sizeof(T)};
  }
  [[nodiscard]] size_t bytes() const { return bytes_; }
  [[nodiscard]] bool is_intact() const {
    const auto is_canary = [](uint8_t byte) { return byte == kCanary; };
    return std::all_of(base_, data_, is_canary) && std::all_of(data_ + bytes_, end_, is_canary);
  }

 private:
  static constexpr size_t kCanaryBytes = 64;
  static constexpr uint8_t kCanary = 0xC7;
  size_t bytes_;
  size_t mapped_ = 0;
  uint8_t* base_ = nullptr;
  uint8_t* data_ = nullptr;
  uint8_t* end_ = nullptr;
};

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_GUARDED_BUFFER_H_
