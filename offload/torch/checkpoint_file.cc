// Snapshots to bytes and back; see checkpoint_file.h.
#include "offload/torch/checkpoint_file.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "offload/torch/tensor_types.h"
#include "outboard/error.h"

namespace outboard {
namespace {

constexpr int64_t kFormatVersion = 1;
constexpr std::string_view kFolder = "checkpoint/";
// What hostile bytes may make this process allocate grows with the pickle.
constexpr size_t kPickleBytes = size_t{1} << 20;
constexpr size_t kPickleBytesPerParameter = size_t{8} << 10;

// In the order of ElementType.
constexpr std::array kScalarTypes = {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong,
                                     at::kInt,    at::kShort, at::kChar, at::kByte,     at::kBool};

ElementType element_type(const at::Tensor& tensor) {
  const auto found = std::ranges::find(kScalarTypes, tensor.scalar_type());
  if (found == kScalarTypes.end()) {
    fail(ErrorKind::kType, kWho, "a state tensor is ", describe(tensor),
         "; checkpoints hold floating-point, integer and bool tensors");
  }
  return static_cast<ElementType>(found - kScalarTypes.begin());
}

PickledValue text(std::string_view value) { return PickledValue::text(value); }

// ---- Writing ------------------------------------------------------------------------------------

// Describes a tensor that will be written as the record data/<key>.
PickledValue described(const at::Tensor& tensor, const std::string& key) {
  const bool keeps_order = is_dense(tensor);
  std::vector<int64_t> strides = tensor.strides().vec();
  if (!keeps_order) {
    strides = at::empty(tensor.sizes(), tensor.options().device(at::kMeta)).strides().vec();
  }
  return PickledValue::tensor({.type = element_type(tensor),
                               .key = key,
                               .sizes = tensor.sizes().vec(),
                               .strides = std::move(strides),
                               .record_elements = tensor.numel()});
}

PickledValue described_states(const Snapshot& snapshot, std::vector<at::Tensor>& tensors) {
  PickledDict states;
  for (size_t i = 0; i < snapshot.states.size(); ++i) {
    PickledDict entry;
    for (const auto& [key, tensor] : snapshot.states[i]) {
      entry.emplace_back(text(key), described(tensor, std::to_string(tensors.size())));
      tensors.push_back(tensor);
    }
    if (entry.empty()) continue;
    states.emplace_back(PickledValue::number(static_cast<int64_t>(i)),
                        PickledValue::dict(std::move(entry)));
  }
  return PickledValue::dict(std::move(states));
}

PickledValue described_groups(const Snapshot& snapshot) {
  PickledItems groups;
  int64_t number = 0;
  for (const Snapshot::Group& group : snapshot.groups) {
    PickledItems parameters;
    for (size_t i = 0; i < group.parameters; ++i) {
      parameters.push_back(PickledValue::number(number++));
    }
    PickledDict entries = group.options;
    entries.emplace_back(text("params"), PickledValue::list(std::move(parameters)));
    groups.push_back(PickledValue::dict(std::move(entries)));
  }
  return PickledValue::list(std::move(groups));
}

PickledValue described_origin(const Snapshot& snapshot) {
  PickledItems masters;
  PickledItems stepped;
  for (const std::string& master : snapshot.masters) masters.push_back(text(master));
  for (size_t i = 0; i < snapshot.states.size(); ++i) {
    if (snapshot.states[i].empty()) continue;
    stepped.push_back(PickledValue::number(static_cast<int64_t>(i)));
  }
  return PickledValue::dict({{text("format_version"), PickledValue::number(kFormatVersion)},
                             {text("seed"), PickledValue::number(snapshot.seed)},
                             {text("optimizer_class"), text(snapshot.optimizer_class)},
                             {text("state_format"), text(snapshot.state_format)},
                             {text("masters"), PickledValue::list(std::move(masters))},
                             {text("stepped"), PickledValue::list(std::move(stepped))}});
}

std::span<const std::byte> bytes_of_text(std::string_view value) {
  return {reinterpret_cast<const std::byte*>(value.data()), value.size()};
}

// ---- Reading ------------------------------------------------------------------------------------

class SnapshotReader {
 public:
  SnapshotReader(const std::string& name, std::span<const std::byte> bytes)
      : name_(name), archive_(name, bytes) {}

  Snapshot read(size_t parameters) {
    if (archive_.has("byteorder")) {
      const auto order = archive_.record("byteorder");
      if (!std::ranges::equal(order, bytes_of_text("little"))) refuse("it is big-endian");
    }
    const auto code = archive_.record("data.pkl");
    if (code.size() > kPickleBytes + parameters * kPickleBytesPerParameter) {
      refuse("its pickle of " + std::to_string(code.size()) + " bytes is too long for " +
             std::to_string(parameters) + " parameters");
    }
    const PickledValue root = unpickle(name_, code);
    Snapshot snapshot;
    std::vector<int64_t> ids = read_groups(root, snapshot);
    read_origin(root, snapshot);
    read_states(root, ids, snapshot);
    return snapshot;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail(ErrorKind::kFile, kWho, name_, " is damaged or no checkpoint: ", what,
         "; use an older one");
  }
  [[noreturn]] void misfit(const std::string& what) const {
    fail(ErrorKind::kValue, kWho, name_, ": ", what,
         "; load a checkpoint saved from the same parameters. Nothing was changed");
  }

  // The saved numbers of the parameters, in order.
  std::vector<int64_t> read_groups(const PickledValue& root, Snapshot& snapshot) const {
    const PickledValue* found = root.find("param_groups");
    const PickledItems* groups = found != nullptr ? found->as_list() : nullptr;
    if (groups == nullptr) misfit("it has no list \"param_groups\"");
    std::vector<int64_t> ids;
    for (const PickledValue& saved : *groups) {
      const PickledValue* parameters = saved.find("params");
      const PickledItems* items = parameters != nullptr ? parameters->as_list() : nullptr;
      if (items == nullptr) misfit("a parameter group has no list \"params\"");
      for (const PickledValue& item : *items) {
        if (item.as<int64_t>() == nullptr) misfit("a parameter has no number");
        ids.push_back(*item.as<int64_t>());
      }
      Snapshot::Group group{.parameters = items->size()};
      for (const auto& [key, value] : *saved.as_dict()) {
        const auto* name = key.as<std::string>();
        if (name != nullptr && *name != "params") group.options.emplace_back(key, value);
      }
      snapshot.groups.push_back(std::move(group));
    }
    return ids;
  }

  void read_origin(const PickledValue& root, Snapshot& snapshot) {
    const PickledValue* own = root.find("outboard");
    if (own == nullptr) return;
    const PickledValue* version = own->find("format_version");
    const auto* number = version != nullptr ? version->as<int64_t>() : nullptr;
    if (number == nullptr || *number < 1 || *number > kFormatVersion) {
      fail(ErrorKind::kValue, kWho, name_, " has a format version that this library does not know",
           " (it reads up to ", kFormatVersion, "); use a newer outboard");
    }
    snapshot.is_own = true;
    if (const auto* seed = own->find("seed")) {
      if (const auto* value = seed->as<int64_t>()) snapshot.seed = *value;
    }
    if (const auto* name = own->find("optimizer_class")) {
      if (const auto* value = name->as<std::string>()) snapshot.optimizer_class = *value;
    }
    read_stepped(*own);
  }

  void read_stepped(const PickledValue& own) {
    const PickledValue* stepped = own.find("stepped");
    if (stepped == nullptr || stepped->as_list() == nullptr)
      misfit("it lacks the list \"stepped\"");
    stepped_ = *stepped->as_list();
  }

  void read_states(const PickledValue& root, const std::vector<int64_t>& ids, Snapshot& snapshot) {
    std::map<int64_t, size_t> position_of;
    for (const int64_t id : ids) {
      if (!position_of.emplace(id, position_of.size()).second) {
        misfit("it names parameter " + std::to_string(id) + " twice");
      }
    }
    snapshot.states.resize(ids.size());
    const PickledValue* found = root.find("state");
    if (found == nullptr || found->as_dict() == nullptr) misfit("it has no dict \"state\"");
    for (const auto& [key, entry] : *found->as_dict()) {
      const auto* id = key.as<int64_t>();
      const auto position = id != nullptr ? position_of.find(*id) : position_of.end();
      if (position == position_of.end() || entry.as_dict() == nullptr) {
        misfit("it has state for what no group has as a parameter");
      }
      TensorMap& state = snapshot.states[position->second];
      if (!state.empty()) misfit("it has the state of a parameter twice");
      for (const auto& [name, value] : *entry.as_dict()) {
        if (name.as<std::string>() == nullptr) misfit("a state has no name");
        if (value.as<PickledValue::None>() != nullptr) continue;
        state.emplace_back(*name.as<std::string>(), tensor_of(value));
      }
    }
    for (const PickledValue& item : stepped_) {
      const auto* position = item.as<int64_t>();
      const bool exists = position != nullptr && *position >= 0 &&
                          static_cast<uint64_t>(*position) < snapshot.states.size();
      if (!exists || snapshot.states[static_cast<size_t>(*position)].empty()) {
        misfit("it lacks the state of a parameter that was updated");
      }
    }
  }

  at::Tensor tensor_of(const PickledValue& value) const {
    if (value.is_number()) return at::scalar_tensor(value.to_double(), at::kDouble);
    const PickledTensor* tensor = value.as_tensor();
    if (tensor == nullptr) misfit("a state is neither a tensor nor a number");
    const size_t bytes = bytes_of(tensor->type);
    const auto record = archive_.record("data/" + tensor->key);
    if (static_cast<uint64_t>(tensor->record_elements) > record.size() / bytes) {
      refuse("its record " + tensor->key + " is too short");
    }
    const at::ScalarType type = kScalarTypes[static_cast<size_t>(tensor->type)];
    int64_t elements = 1;
    for (const int64_t size : tensor->sizes) elements *= size;
    if (elements == 0) return at::empty(tensor->sizes, type);
    // at::from_blob wants what it never writes to as non-const.
    auto* data =
        const_cast<std::byte*>(record.data()) + static_cast<size_t>(tensor->offset) * bytes;
    if (reinterpret_cast<uintptr_t>(data) % bytes == 0) {
      return at::from_blob(data, tensor->sizes, tensor->strides, type);
    }
    return copied(*tensor, record.subspan(static_cast<size_t>(tensor->offset) * bytes), type);
  }

  static at::Tensor copied(const PickledTensor& tensor, std::span<const std::byte> from,
                           at::ScalarType type) {
    const at::Tensor all =
        at::empty({static_cast<int64_t>(from.size() / bytes_of(tensor.type))}, type);
    std::copy_n(from.data(), all.nbytes(), static_cast<std::byte*>(all.data_ptr()));
    return all.as_strided(tensor.sizes, tensor.strides);
  }

  const std::string& name_;
  ZipReader archive_;
  PickledItems stepped_;
};

}  // namespace

void write_snapshot(const Snapshot& snapshot, const ZipWriter::Sink& sink) {
  std::vector<at::Tensor> tensors;
  PickledDict root{{text("state"), described_states(snapshot, tensors)},
                   {text("param_groups"), described_groups(snapshot)}};
  if (snapshot.is_own) root.emplace_back(text("outboard"), described_origin(snapshot));
  ZipWriter archive(sink);
  const auto add = [&](const std::string& name, std::span<const std::byte> bytes) {
    archive.add(std::string(kFolder) + name, bytes);
  };
  add("data.pkl", bytes_of_text(pickle(PickledValue::dict(std::move(root)))));
  add("byteorder", bytes_of_text("little"));
  for (size_t i = 0; i < tensors.size(); ++i) {
    at::Tensor tensor = tensors[i].detach().to(at::kCPU);
    if (!is_dense(tensor)) tensor = tensor.contiguous();
    add("data/" + std::to_string(i),
        {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()});
  }
  add("version", bytes_of_text("3\n"));
  archive.finish();
}

Snapshot read_snapshot(const std::string& name, std::span<const std::byte> bytes,
                       size_t parameters) {
  return SnapshotReader(name, bytes).read(parameters);
}

}  // namespace outboard
