// Values, and writing them; see pickle.h. Reading is in unpickle.cc.
#include "offload/checkpoint/pickle.h"

#include <bit>
#include <limits>

#include "offload/checkpoint/pickle_codes.h"

namespace outboard {
namespace {

class Pickler {
 public:
  std::string run(const PickledValue& value) {
    code(PickleCode::kProtocol).byte(2);
    put(value);
    code(PickleCode::kStop);
    return std::move(out_);
  }

 private:
  Pickler& code(PickleCode code) { return byte(static_cast<uint8_t>(code)); }
  Pickler& byte(uint8_t value) {
    out_ += static_cast<char>(value);
    return *this;
  }
  template <class T>
  void little(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) byte(static_cast<uint8_t>(value >> (8 * i)));
  }

  void put_text(std::string_view text) {
    code(PickleCode::kUnicode);
    little(static_cast<uint32_t>(text.size()));
    out_ += text;
  }
  void put_global(std::string_view module, std::string_view name) {
    code(PickleCode::kGlobal);
    out_.append(module).append("\n").append(name).append("\n");
  }
  void put_bool(bool value) { code(value ? PickleCode::kTrue : PickleCode::kFalse); }
  void put_integer(int64_t value) {
    if (value == static_cast<int32_t>(value)) {
      code(PickleCode::kInt32);
      little(static_cast<uint32_t>(value));
    } else {
      code(PickleCode::kLong).byte(8);
      little(static_cast<uint64_t>(value));
    }
  }
  void put_double(double value) {
    code(PickleCode::kFloat);
    const auto bits = std::bit_cast<uint64_t>(value);
    for (int shift = 56; shift >= 0; shift -= 8) byte(static_cast<uint8_t>(bits >> shift));
  }
  void put_tuple(const PickledItems& items) {
    code(PickleCode::kMark);
    for (const PickledValue& item : items) put(item);
    code(PickleCode::kTuple);
  }
  void put_tuple(const std::vector<int64_t>& numbers) {
    code(PickleCode::kMark);
    for (const int64_t item : numbers) put_integer(item);
    code(PickleCode::kTuple);
  }
  void put_list(const PickledItems& items) {
    code(PickleCode::kEmptyList).code(PickleCode::kMark);
    for (const PickledValue& item : items) put(item);
    code(PickleCode::kAppends);
  }
  void put_dict(const PickledDict& items) {
    code(PickleCode::kEmptyDict).code(PickleCode::kMark);
    for (const auto& [key, value] : items) {
      put(key);
      put(value);
    }
    code(PickleCode::kSetItems);
  }

  // torch._utils._rebuild_tensor_v2(storage, offset, sizes, strides, requires_grad, hooks), where
  // the storage is named by the persistent id ("storage", type, key, location, elements).
  void put_tensor(const PickledTensor& tensor) {
    put_global(kTensorModule, kTensorName);
    code(PickleCode::kMark).code(PickleCode::kMark);
    put_text("storage");
    put_global("torch", storage_name(tensor.type));
    put_text(tensor.key);
    put_text("cpu");
    put_integer(tensor.record_elements);
    code(PickleCode::kTuple).code(PickleCode::kPersistentId);
    put_integer(tensor.offset);
    put_tuple(tensor.sizes);
    put_tuple(tensor.strides);
    put_bool(false);
    put_global(kOrderedModule, kOrderedName);
    code(PickleCode::kEmptyTuple).code(PickleCode::kReduce);
    code(PickleCode::kTuple).code(PickleCode::kReduce);
  }

  void put(const PickledValue& value) {
    if (const auto* flag = value.as<bool>()) return put_bool(*flag);
    if (const auto* integer = value.as<int64_t>()) return put_integer(*integer);
    if (const auto* real = value.as<double>()) return put_double(*real);
    if (const auto* text = value.as<std::string>()) return put_text(*text);
    if (const auto* list = value.as_list()) return put_list(*list);
    if (const auto* tuple = value.as_tuple()) return put_tuple(*tuple);
    if (const auto* dict = value.as_dict()) return put_dict(*dict);
    if (const auto* tensor = value.as_tensor()) return put_tensor(*tensor);
    code(PickleCode::kNone);
  }

  std::string out_;
};

}  // namespace

size_t bytes_of(ElementType type) { return kElementTypes[static_cast<size_t>(type)].bytes; }

PickledValue PickledValue::list(PickledItems items) {
  return PickledValue(std::make_shared<List>(List{std::move(items)}));
}
PickledValue PickledValue::tuple(PickledItems items) {
  return PickledValue(std::make_shared<Tuple>(Tuple{std::move(items)}));
}
PickledValue PickledValue::dict(PickledDict items) {
  return PickledValue(std::make_shared<Dict>(Dict{std::move(items)}));
}
PickledValue PickledValue::tensor(PickledTensor tensor) {
  return PickledValue(std::make_shared<PickledTensor>(std::move(tensor)));
}

const PickledItems* PickledValue::as_list() const {
  const auto* list = as<std::shared_ptr<List>>();
  return list != nullptr ? &(*list)->items : nullptr;
}
const PickledItems* PickledValue::as_tuple() const {
  const auto* tuple = as<std::shared_ptr<Tuple>>();
  return tuple != nullptr ? &(*tuple)->items : nullptr;
}
const PickledDict* PickledValue::as_dict() const {
  const auto* dict = as<std::shared_ptr<Dict>>();
  return dict != nullptr ? &(*dict)->items : nullptr;
}
const PickledTensor* PickledValue::as_tensor() const {
  const auto* tensor = as<std::shared_ptr<PickledTensor>>();
  return tensor != nullptr ? tensor->get() : nullptr;
}

const PickledValue* PickledValue::find(std::string_view key) const {
  const PickledDict* dict = as_dict();
  if (dict == nullptr) return nullptr;
  for (const auto& [name, value] : *dict) {
    const auto* text = name.as<std::string>();
    if (text != nullptr && *text == key) return &value;
  }
  return nullptr;
}

bool PickledValue::is_number() const {
  return as<bool>() != nullptr || as<int64_t>() != nullptr || as<double>() != nullptr;
}

double PickledValue::to_double() const {
  if (const auto* real = as<double>()) return *real;
  if (const auto* integer = as<int64_t>()) return static_cast<double>(*integer);
  if (const auto* flag = as<bool>()) return *flag ? 1 : 0;
  return std::numeric_limits<double>::quiet_NaN();
}

std::string pickle(const PickledValue& value) { return Pickler().run(value); }

}  // namespace outboard
