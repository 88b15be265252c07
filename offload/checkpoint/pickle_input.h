// The bytes of a pickle, read from front to back with every length checked. What they mean lives in
// unpickle.cc.
#ifndef OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_INPUT_H_
#define OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_INPUT_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "offload/checkpoint/pickle_stack.h"

namespace outboard {

/// Throws Damage, which names the position, instead of reading past the end.
class PickleInput {
 public:
  explicit PickleInput(std::span<const std::byte> bytes) : bytes_(bytes) {}

  [[noreturn]] void refuse(const std::string& what) const {
    throw Damage{what + " (at byte " + std::to_string(position_) + " of its pickle)"};
  }
  [[nodiscard]] size_t size() const { return bytes_.size(); }

  std::span<const std::byte> take(size_t count) {
    if (bytes_.size() - position_ < count) refuse("its pickle is cut off");
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }
  /// A little-endian number.
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  /// A signed little-endian number of `count` bytes.
  int64_t integer(size_t count) {
    if (count > 8) refuse("it has an integer of more than 64 bits");
    const auto part = take(count);
    uint64_t value = 0;
    for (size_t i = 0; i < count; ++i) {
      value |= static_cast<uint64_t>(static_cast<uint8_t>(part[i])) << (8 * i);
    }
    const bool is_negative = count > 0 && (static_cast<uint8_t>(part[count - 1]) & 0x80) != 0;
    if (is_negative && count < 8) value |= ~uint64_t{0} << (8 * count);
    return static_cast<int64_t>(value);
  }
  /// A big-endian fp64 number.
  double real() {
    uint64_t bits = 0;
    for (const std::byte byte : take(8)) bits = bits << 8 | static_cast<uint8_t>(byte);
    return std::bit_cast<double>(bits);
  }
  std::string text(size_t count) {
    const auto part = take(count);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  /// Up to a line end, which is left out.
  std::string line() {
    std::string result;
    while (true) {
      const char next = number<char>();
      if (next == '\n') return result;
      result += next;
    }
  }

 private:
  std::span<const std::byte> bytes_;
  size_t position_ = 0;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_INPUT_H_
