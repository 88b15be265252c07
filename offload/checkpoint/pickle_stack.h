// What the stack of the pickle reader holds, and how a tensor is made from it.
#ifndef OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_STACK_H_
#define OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_STACK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "offload/checkpoint/pickle.h"

namespace outboard {

/// Thrown inside the reader: what is wrong with the pickle.
struct Damage {
  std::string what;
};

/// A name that the pickle imports.
struct Global {
  std::string module;
  std::string name;
  friend bool operator==(const Global&, const Global&) = default;
};

/// A record that tensors are made of.
struct Storage {
  ElementType type;
  std::string key;
  int64_t elements;
};

struct Arguments;

/// What the stack holds: a value, or what a tensor is made from. `depth` counts the containers
/// inside each other.
struct Entry {
  std::variant<PickledValue, Global, Storage, std::shared_ptr<const Arguments>> content;
  int depth = 0;
};

/// The arguments of a call.
struct Arguments {
  std::vector<Entry> entries;
};

/// From ("storage", type, key, location, elements). Throws Damage.
[[nodiscard]] Storage storage_of(const std::vector<Entry>& parts);

/// From storage, offset, sizes, strides; what follows (gradients, hooks) means nothing in a
/// checkpoint. The tensor lies inside its record. Throws Damage.
[[nodiscard]] PickledTensor tensor_of(const std::vector<Entry>& arguments);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_CHECKPOINT_PICKLE_STACK_H_
