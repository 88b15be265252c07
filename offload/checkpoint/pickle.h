// Values of a checkpoint and their pickled form: the part of the pickle language that plain dicts,
// lists, numbers, strings and tensors need. Nothing is ever executed or imported.
#ifndef OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_H_
#define OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace outboard {

/// Element types that tensors in checkpoints may have.
enum class ElementType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };

/// Bytes of one element.
[[nodiscard]] size_t bytes_of(ElementType type);

/// A tensor as the pickle names it: a strided part of the record "data/<key>".
struct PickledTensor {
  ElementType type = ElementType::kF32;
  std::string key = {};
  std::vector<int64_t> sizes = {};
  std::vector<int64_t> strides = {};
  int64_t offset = 0;           ///< in elements
  int64_t record_elements = 0;  ///< that the record must hold
};

class PickledValue;
using PickledItems = std::vector<PickledValue>;
using PickledDict = std::vector<std::pair<PickledValue, PickledValue>>;

/// One value. Containers are shared between copies and not changed once they are complete.
class PickledValue {
 public:
  struct None {};
  struct List {
    PickledItems items;
  };
  struct Tuple {
    PickledItems items;
  };
  struct Dict {
    PickledDict items;
  };
  using Content =
      std::variant<None, bool, int64_t, double, std::string, std::shared_ptr<List>,
                   std::shared_ptr<Tuple>, std::shared_ptr<Dict>, std::shared_ptr<PickledTensor>>;

  PickledValue() = default;
  template <class T>
  explicit PickledValue(T content) : content_(std::move(content)) {}
  static PickledValue text(std::string_view value) { return PickledValue(std::string(value)); }
  static PickledValue number(int64_t value) { return PickledValue(value); }
  static PickledValue list(PickledItems items);
  static PickledValue tuple(PickledItems items);
  static PickledValue dict(PickledDict items);
  static PickledValue tensor(PickledTensor tensor);

  /// The content if it has the type, else null.
  template <class T>
  [[nodiscard]] const T* as() const {
    return std::get_if<T>(&content_);
  }
  [[nodiscard]] const PickledItems* as_list() const;
  [[nodiscard]] const PickledItems* as_tuple() const;
  [[nodiscard]] const PickledDict* as_dict() const;
  [[nodiscard]] const PickledTensor* as_tensor() const;
  /// The value under a string key of a dict; null if there is none or this is no dict.
  [[nodiscard]] const PickledValue* find(std::string_view key) const;
  /// Whether this is a number (bool, integer, float), and which.
  [[nodiscard]] bool is_number() const;
  [[nodiscard]] double to_double() const;

 private:
  Content content_;
};

/// The pickle (protocol 2) of a value, as Python's restricted unpickler of torch.load reads it.
[[nodiscard]] std::string pickle(const PickledValue& value);

/// Reads a pickle. The bytes are treated as hostile: every length is checked, containers nest at
/// most 32 deep and are never read twice, and names other than those of tensors and ordered dicts
/// are refused. Throws Error(kFile) that begins with `name`.
[[nodiscard]] PickledValue unpickle(std::string_view name, std::span<const std::byte> bytes);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_H_
