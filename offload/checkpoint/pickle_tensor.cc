// Tensors from the arguments of their calls; see pickle_stack.h.
#include "offload/checkpoint/pickle_codes.h"
#include "offload/checkpoint/pickle_stack.h"

namespace outboard {
namespace {

constexpr size_t kMostDimensions = 64;

[[noreturn]] void damaged(const std::string& what) { throw Damage{what}; }

std::vector<int64_t> numbers_of(const Entry& entry) {
  const auto* value = std::get_if<PickledValue>(&entry.content);
  const PickledItems* items = value != nullptr ? value->as_tuple() : nullptr;
  if (items == nullptr || items->size() > kMostDimensions) damaged("a tensor has no shape");
  std::vector<int64_t> numbers;
  for (const PickledValue& item : *items) {
    const auto* integer = item.as<int64_t>();
    if (integer == nullptr || *integer < 0) damaged("a tensor has a negative shape");
    numbers.push_back(*integer);
  }
  return numbers;
}

void check_extent(const PickledTensor& tensor) {
  if (tensor.sizes.size() != tensor.strides.size() || tensor.offset < 0 ||
      tensor.offset > tensor.record_elements) {
    damaged("a tensor has a wrong shape");
  }
  int64_t last = tensor.offset;
  int64_t elements = 1;
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    int64_t step = 0;
    const bool overflows =
        __builtin_mul_overflow(elements, tensor.sizes[i], &elements) ||
        (tensor.sizes[i] > 0 &&
         (__builtin_mul_overflow(tensor.sizes[i] - 1, tensor.strides[i], &step) ||
          __builtin_add_overflow(last, step, &last)));
    if (overflows) damaged("a tensor is larger than any memory");
  }
  if (elements > 0 && last >= tensor.record_elements) {
    damaged("a tensor reaches beyond its record " + tensor.key);
  }
}

}  // namespace

Storage storage_of(const std::vector<Entry>& parts) {
  const auto word = [&](size_t i) -> const std::string* {
    const auto* value = std::get_if<PickledValue>(&parts[i].content);
    return value != nullptr ? value->as<std::string>() : nullptr;
  };
  const auto* type = parts.size() == 5 ? std::get_if<Global>(&parts[1].content) : nullptr;
  if (type == nullptr || type->module != "torch" || word(0) == nullptr || *word(0) != "storage" ||
      word(2) == nullptr) {
    damaged("it names a storage wrongly");
  }
  const auto* last = std::get_if<PickledValue>(&parts[4].content);
  const auto* elements = last != nullptr ? last->as<int64_t>() : nullptr;
  if (elements == nullptr || *elements < 0) damaged("it names a storage wrongly");
  for (size_t i = 0; i < kElementTypes.size(); ++i) {
    if (kElementTypes[i].storage == type->name) {
      return {static_cast<ElementType>(i), *word(2), *elements};
    }
  }
  damaged("it has elements of the type torch." + type->name);
}

PickledTensor tensor_of(const std::vector<Entry>& arguments) {
  const auto* storage = std::get_if<Storage>(&arguments[0].content);
  const auto* offset = std::get_if<PickledValue>(&arguments[1].content);
  if (storage == nullptr || offset == nullptr || offset->as<int64_t>() == nullptr) {
    damaged("a tensor has no storage");
  }
  PickledTensor tensor{.type = storage->type,
                       .key = storage->key,
                       .sizes = numbers_of(arguments[2]),
                       .strides = numbers_of(arguments[3]),
                       .offset = *offset->as<int64_t>(),
                       .record_elements = storage->elements};
  check_extent(tensor);
  return tensor;
}

}  // namespace outboard
