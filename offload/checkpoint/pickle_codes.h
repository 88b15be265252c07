// The instructions and names of the pickle language that checkpoints use. Constants only.
#ifndef OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_CODES_H_
#define OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_CODES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "offload/checkpoint/pickle.h"

namespace outboard {

enum class PickleCode : uint8_t {
  kMark = '(',
  kStop = '.',
  kNone = 'N',
  kTrue = 0x88,
  kFalse = 0x89,
  kInt8 = 'K',
  kInt16 = 'M',
  kInt32 = 'J',
  kLong = 0x8a,
  kFloat = 'G',
  kUnicode = 'X',
  kShortUnicode = 0x8c,
  kEmptyDict = '}',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kTuple = 't',
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kAppend = 'a',
  kAppends = 'e',
  kSetItem = 's',
  kSetItems = 'u',
  kPut = 'q',
  kLongPut = 'r',
  kGet = 'h',
  kLongGet = 'j',
  kGlobal = 'c',
  kReduce = 'R',
  kPersistentId = 'Q',
  kProtocol = 0x80,
};

inline constexpr std::string_view kTensorModule = "torch._utils";
inline constexpr std::string_view kTensorName = "_rebuild_tensor_v2";
inline constexpr std::string_view kParameterName = "_rebuild_parameter";
inline constexpr std::string_view kOrderedModule = "collections";
inline constexpr std::string_view kOrderedName = "OrderedDict";

/// torch's name of a storage, and the bytes of an element; in the order of ElementType.
struct ElementTypeInfo {
  std::string_view storage;
  size_t bytes;
};
inline constexpr std::array<ElementTypeInfo, 10> kElementTypes = {{
    {"DoubleStorage", 8},
    {"FloatStorage", 4},
    {"HalfStorage", 2},
    {"BFloat16Storage", 2},
    {"LongStorage", 8},
    {"IntStorage", 4},
    {"ShortStorage", 2},
    {"CharStorage", 1},
    {"ByteStorage", 1},
    {"BoolStorage", 1},
}};

inline std::string_view storage_name(ElementType type) {
  return kElementTypes[static_cast<size_t>(type)].storage;
}

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_CODES_H_
