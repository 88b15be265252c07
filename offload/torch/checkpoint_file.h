// An optimizer's state as a checkpoint holds it, and its bytes: the structure of Python's
// optimizer.state_dict() in the archive of torch.save. Knows no optimizer.
#ifndef OUTBOARD_OFFLOAD_TORCH_CHECKPOINT_FILE_H_
#define OUTBOARD_OFFLOAD_TORCH_CHECKPOINT_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "offload/checkpoint/pickle.h"
#include "offload/checkpoint/zip_archive.h"
#include "offload/torch/tensor_engine.h"

namespace outboard {

/// One optimizer. Parameters are numbered over the groups, in order.
struct Snapshot {
  struct Group {
    PickledDict options = {};  ///< torch's keys, without "params"
    size_t parameters = 0;
  };
  std::vector<Group> groups = {};
  std::vector<TensorMap> states = {};  ///< one per parameter; empty before its first update

  /// The entry "outboard". A dict without it comes from torch: `is_own` is false.
  bool is_own = false;
  int64_t seed = 0;
  std::string optimizer_class = {};
  std::string state_format = {};
  std::vector<std::string> masters = {};  ///< per parameter
};

/// Writes the checkpoint piece by piece: tensors are not copied, those on a device one at a time.
void write_snapshot(const Snapshot& snapshot, const ZipWriter::Sink& sink);

/// Reads a checkpoint of `parameters` parameters from hostile bytes. Tensors alias `bytes` where
/// they are aligned. Throws Error(kFile) that begins with `name` for damage, Error(kValue) for
/// another structure.
[[nodiscard]] Snapshot read_snapshot(const std::string& name, std::span<const std::byte> bytes,
                                     size_t parameters);

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_TORCH_CHECKPOINT_FILE_H_
