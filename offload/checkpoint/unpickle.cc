// A stack machine that builds values from a hostile pickle; see pickle.h. What it does not know it
// refuses.
#include <algorithm>
#include <map>

#include "offload/checkpoint/pickle.h"
#include "offload/checkpoint/pickle_codes.h"
#include "offload/checkpoint/pickle_input.h"
#include "offload/checkpoint/pickle_stack.h"
#include "outboard/error.h"

namespace outboard {
namespace {

constexpr std::string_view kWho = "checkpoint";
constexpr int kMostNesting = 32;  // values are freed recursively
constexpr size_t kMostArguments = 16;
constexpr size_t kMostGrowth = 64;  // bytes of copied text per byte of pickle

const Global kRebuildTensor{std::string(kTensorModule), std::string(kTensorName)};
const Global kRebuildParameter{std::string(kTensorModule), std::string(kParameterName)};
const Global kOrderedDict{std::string(kOrderedModule), std::string(kOrderedName)};

class Unpickler {
 public:
  explicit Unpickler(std::span<const std::byte> bytes) : input_(bytes) {}

  PickledValue run() {
    while (true) {
      const auto code = static_cast<PickleCode>(input_.number<uint8_t>());
      if (code == PickleCode::kStop) break;
      if (!do_scalar(code) && !do_container(code) && !do_memo(code)) do_object(code);
    }
    if (stack_.size() != 1 || !marks_.empty()) refuse("its pickle leaves a heap behind");
    return take_value();
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { input_.refuse(what); }

  void push(PickledValue value, int depth = 0) {
    if (depth > kMostNesting) refuse("its containers nest too deeply");
    stack_.push_back({std::move(value), depth});
  }
  template <class T>
  void push_scalar(T value) {
    push(PickledValue(std::move(value)));
  }
  // Entries below the latest mark are out of reach.
  Entry take_entry() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) refuse("its stack is empty");
    Entry entry = std::move(stack_.back());
    stack_.pop_back();
    return entry;
  }
  PickledValue value_of(Entry& entry) const {
    auto* value = std::get_if<PickledValue>(&entry.content);
    if (value == nullptr) refuse("a name stands where a value must");
    return std::move(*value);
  }
  PickledValue take_value() {
    Entry entry = take_entry();
    return value_of(entry);
  }
  std::vector<Entry> take_to_mark() {
    if (marks_.empty()) refuse("a mark is missing");
    const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Entry> entries(std::make_move_iterator(first),
                               std::make_move_iterator(stack_.end()));
    stack_.erase(first, stack_.end());
    marks_.pop_back();
    return entries;
  }
  std::vector<Entry> take_last(size_t count) {
    std::vector<Entry> entries(count);
    for (size_t i = count; i-- > 0;) entries[i] = take_entry();
    return entries;
  }

  bool do_scalar(PickleCode code) {
    switch (code) {
      case PickleCode::kProtocol:
        if (input_.number<uint8_t>() > 4) refuse("its protocol is unknown");
        return true;
      case PickleCode::kNone:
        push(PickledValue());
        return true;
      case PickleCode::kTrue:
      case PickleCode::kFalse:
        push_scalar(code == PickleCode::kTrue);
        return true;
      case PickleCode::kInt8:
        push_scalar(static_cast<int64_t>(input_.number<uint8_t>()));
        return true;
      case PickleCode::kInt16:
        push_scalar(static_cast<int64_t>(input_.number<uint16_t>()));
        return true;
      case PickleCode::kInt32:
        push_scalar(static_cast<int64_t>(input_.number<int32_t>()));
        return true;
      case PickleCode::kLong:
        push_scalar(input_.integer(input_.number<uint8_t>()));
        return true;
      case PickleCode::kFloat:
        push_scalar(input_.real());
        return true;
      case PickleCode::kUnicode:
        push_scalar(input_.text(input_.number<uint32_t>()));
        return true;
      case PickleCode::kShortUnicode:
        push_scalar(input_.text(input_.number<uint8_t>()));
        return true;
      default:
        return false;
    }
  }

  bool do_container(PickleCode code) {
    switch (code) {
      case PickleCode::kMark:
        marks_.push_back(stack_.size());
        return true;
      case PickleCode::kEmptyDict:
        push(PickledValue::dict({}), 1);
        return true;
      case PickleCode::kEmptyList:
        push(PickledValue::list({}), 1);
        return true;
      case PickleCode::kEmptyTuple:
        push(PickledValue::tuple({}), 1);
        return true;
      case PickleCode::kTuple:
        push_tuple(take_to_mark());
        return true;
      case PickleCode::kTuple1:
      case PickleCode::kTuple2:
      case PickleCode::kTuple3:
        push_tuple(take_last(static_cast<size_t>(code) - 0x84));
        return true;
      case PickleCode::kAppend:
        append(take_last(1));
        return true;
      case PickleCode::kAppends:
        append(take_to_mark());
        return true;
      case PickleCode::kSetItem:
        set_items(take_last(2));
        return true;
      case PickleCode::kSetItems:
        set_items(take_to_mark());
        return true;
      default:
        return false;
    }
  }

  // A tuple that holds a name or a storage is the arguments of a call, and no value.
  void push_tuple(std::vector<Entry> entries) {
    PickledItems items;
    int depth = 1;
    for (const Entry& entry : entries) {
      if (const auto* value = std::get_if<PickledValue>(&entry.content)) items.push_back(*value);
      depth = std::max(depth, entry.depth + 1);
    }
    if (items.size() == entries.size()) return push(PickledValue::tuple(std::move(items)), depth);
    if (depth > kMostNesting) refuse("its containers nest too deeply");
    stack_.push_back({std::make_shared<const Arguments>(Arguments{std::move(entries)}), depth});
  }
  std::vector<Entry> take_arguments() {
    Entry entry = take_entry();
    if (const auto* parts = std::get_if<std::shared_ptr<const Arguments>>(&entry.content)) {
      if ((*parts)->entries.size() > kMostArguments) refuse("a call has too many arguments");
      return (*parts)->entries;
    }
    const PickledValue value = value_of(entry);
    const PickledItems* items = value.as_tuple();
    if (items == nullptr || items->size() > kMostArguments) {
      refuse("the arguments of a call are no short tuple");
    }
    std::vector<Entry> entries;
    for (const PickledValue& item : *items) entries.push_back({item});
    return entries;
  }

  void append(std::vector<Entry> entries) {
    Entry& target = top();
    auto* value = std::get_if<PickledValue>(&target.content);
    const auto* list =
        value != nullptr ? value->as<std::shared_ptr<PickledValue::List>>() : nullptr;
    if (list == nullptr) refuse("it appends to what is no list");
    for (Entry& entry : entries) {
      target.depth = std::max(target.depth, entry.depth + 1);
      (*list)->items.push_back(value_of(entry));
    }
    if (target.depth > kMostNesting) refuse("its containers nest too deeply");
  }
  void set_items(std::vector<Entry> entries) {
    Entry& target = top();
    auto* value = std::get_if<PickledValue>(&target.content);
    const auto* dict =
        value != nullptr ? value->as<std::shared_ptr<PickledValue::Dict>>() : nullptr;
    if (dict == nullptr || entries.size() % 2 != 0) refuse("it adds to what is no dict");
    for (size_t i = 0; i < entries.size(); i += 2) {
      target.depth = std::max({target.depth, entries[i].depth + 1, entries[i + 1].depth + 1});
      PickledValue key = value_of(entries[i]);
      (*dict)->items.emplace_back(std::move(key), value_of(entries[i + 1]));
    }
    if (target.depth > kMostNesting) refuse("its containers nest too deeply");
  }
  Entry& top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) refuse("its stack is empty");
    return stack_.back();
  }

  bool do_memo(PickleCode code) {
    switch (code) {
      case PickleCode::kPut:
        put(input_.number<uint8_t>());
        return true;
      case PickleCode::kLongPut:
        put(input_.number<uint32_t>());
        return true;
      case PickleCode::kGet:
        get(input_.number<uint8_t>());
        return true;
      case PickleCode::kLongGet:
        get(input_.number<uint32_t>());
        return true;
      default:
        return false;
    }
  }
  void put(uint32_t index) {
    charge(top());
    memo_[index] = top();
  }
  // Texts are copied: a long one that is read again and again must not fill the memory.
  void charge(const Entry& entry) {
    const auto* value = std::get_if<PickledValue>(&entry.content);
    const auto* text = value != nullptr ? value->as<std::string>() : nullptr;
    if (text != nullptr) copied_bytes_ += text->size();
    const auto* global = std::get_if<Global>(&entry.content);
    if (global != nullptr) copied_bytes_ += global->module.size() + global->name.size();
    const auto* storage = std::get_if<Storage>(&entry.content);
    if (storage != nullptr) copied_bytes_ += storage->key.size();
    if (copied_bytes_ / kMostGrowth > input_.size()) refuse("it repeats long texts");
  }
  // A list or dict that is read twice could contain itself.
  void get(uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) refuse("it reads a value that it never stored");
    const auto* value = std::get_if<PickledValue>(&found->second.content);
    if (value != nullptr && (value->as_list() != nullptr || value->as_dict() != nullptr)) {
      refuse("it uses a list or dict twice");
    }
    charge(found->second);
    stack_.push_back(found->second);
  }

  void do_object(PickleCode code) {
    switch (code) {
      case PickleCode::kGlobal: {
        std::string module = input_.line();
        stack_.push_back({Global{std::move(module), input_.line()}});
        return;
      }
      case PickleCode::kPersistentId:
        stack_.push_back({storage_of(take_arguments())});
        return;
      case PickleCode::kReduce:
        return call();
      default:
        refuse("its pickle has the instruction " + std::to_string(static_cast<int>(code)));
    }
  }

  void call() {
    const std::vector<Entry> arguments = take_arguments();
    const Entry callee = take_entry();
    const auto* global = std::get_if<Global>(&callee.content);
    if (global == nullptr) refuse("it calls what has no name");
    if (*global == kOrderedDict && arguments.empty()) {
      push(PickledValue::dict({}), 1);
    } else if (*global == kRebuildTensor && arguments.size() >= 6) {
      push(PickledValue::tensor(tensor_of(arguments)));
    } else if (*global == kRebuildParameter && !arguments.empty() &&
               tensor_in(arguments[0]) != nullptr) {
      stack_.push_back(arguments[0]);
    } else {
      refuse("it calls " + global->module + "." + global->name);
    }
  }
  static const PickledTensor* tensor_in(const Entry& entry) {
    const auto* value = std::get_if<PickledValue>(&entry.content);
    return value != nullptr ? value->as_tensor() : nullptr;
  }

  PickleInput input_;
  std::vector<Entry> stack_;
  std::vector<size_t> marks_;
  std::map<uint32_t, Entry> memo_;
  size_t copied_bytes_ = 0;
};

}  // namespace

PickledValue unpickle(std::string_view name, std::span<const std::byte> bytes) {
  try {
    return Unpickler(bytes).run();
  } catch (const Damage& damage) {
    fail(ErrorKind::kFile, kWho, name, " is damaged or no checkpoint: ", damage.what,
         "; use an older one");
  }
}

}  // namespace outboard
