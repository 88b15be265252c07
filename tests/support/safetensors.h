// Reads golden files: safetensors with fp32, fp64 and integer arrays.
#ifndef OUTBOARD_TESTS_SUPPORT_SAFETENSORS_H_
#define OUTBOARD_TESTS_SUPPORT_SAFETENSORS_H_

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/json.h"

namespace outboard::testing {

/// One file, held in memory.
class Safetensors {
 public:
  explicit Safetensors(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    if (bytes_.size() < 8) throw std::runtime_error("cannot read " + path);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes_.data(), 8);
    data_ = 8 + header_bytes;
    header_ = JsonReader(std::string_view(bytes_).substr(8, header_bytes)).read();
  }

  /// A file of the folder tests/golden.
  static Safetensors golden(const std::string& name) {
    return Safetensors(std::string(OUTBOARD_GOLDEN_DIR) + "/" + name + ".safetensors");
  }

  [[nodiscard]] bool has(const std::string& name) const { return header_.has(name); }

  [[nodiscard]] std::string dtype(const std::string& name) const {
    return header_.at(name).at("dtype").text;
  }

  /// The metadata strings by key.
  [[nodiscard]] const std::map<std::string, Json>& metadata() const {
    return header_.at("__metadata__").members;
  }

  /// The elements of one array; T has the size of the stored type.
  template <class T>
  [[nodiscard]] std::vector<T> values(const std::string& name) const {
    const std::vector<Json>& offsets = header_.at(name).at("data_offsets").items;
    const auto first = static_cast<size_t>(offsets.at(0).number);
    const auto last = static_cast<size_t>(offsets.at(1).number);
    std::vector<T> result((last - first) / sizeof(T));
    std::memcpy(result.data(), bytes_.data() + data_ + first, last - first);
    return result;
  }

 private:
  std::string bytes_;
  size_t data_ = 0;
  Json header_;
};

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_SAFETENSORS_H_
