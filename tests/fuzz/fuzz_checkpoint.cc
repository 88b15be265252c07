// Feeds mutated checkpoints to the archive and pickle readers: each must be read or refused with
// outboard::Error, and what is read must lie inside the file. Deterministic; argument 1 changes the
// number of rounds. Meant to run under the sanitizers too.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "offload/checkpoint/pickle.h"
#include "offload/checkpoint/zip_archive.h"
#include "outboard/error.h"

namespace outboard {
namespace {

using Random = std::mt19937_64;

std::span<const std::byte> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

PickledValue text(std::string_view value) { return PickledValue::text(value); }
PickledValue number(int64_t value) { return PickledValue::number(value); }

PickledValue state_entry(int64_t index) {
  const auto tensor = [&](int64_t key) {
    return PickledValue::tensor({.type = ElementType::kF32,
                                 .key = std::to_string(key),
                                 .sizes = {4, 8},
                                 .strides = {8, 1},
                                 .record_elements = 32});
  };
  return PickledValue::dict({{text("step"), PickledValue(3.0)},
                             {text("exp_avg"), tensor(2 * index)},
                             {text("exp_avg_sq"), tensor(2 * index + 1)}});
}

std::string valid_pickle() {
  const PickledValue group = PickledValue::dict(
      {{text("lr"), PickledValue(1e-3)},
       {text("betas"), PickledValue::tuple({PickledValue(0.9), PickledValue(0.999)})},
       {text("amsgrad"), PickledValue(false)},
       {text("foreach"), PickledValue()},
       {text("params"), PickledValue::list({number(0), number(1)})}});
  return pickle(PickledValue::dict(
      {{text("state"),
        PickledValue::dict({{number(0), state_entry(0)}, {number(1), state_entry(1)}})},
       {text("param_groups"), PickledValue::list({group})},
       {text("outboard"), PickledValue::dict({{text("format_version"), number(1)},
                                              {text("seed"), number(int64_t{1} << 40)}})}}));
}

// What Python's pickler writes and ours does not: memo entries, short integers, single items.
std::string python_pickle() {
  using namespace std::string_literals;
  return "\x80\x02}q\x00X\x05\x00\x00\x00stateq\x01}q\x02K\x00}q\x03X\x04\x00\x00\x00stepq\x04"s
         "ctorch._utils\n_rebuild_tensor_v2\nq\x05((X\x07\x00\x00\x00storageq\x06"s
         "ctorch\nFloatStorage\nq\x07X\x01\x00\x00\x00"
         "0q\x08X\x03\x00\x00\x00"
         "cpuq\x09K\x20tq\x0aQ"s
         "K\x00K\x04K\x08\x86q\x0bK\x08K\x01\x86q\x0c\x89"
         "ccollections\nOrderedDict\nq\x0d)Rq\x0e"s
         "tq\x0fRq\x10sss."s;
}

std::string archive_with(const std::string& code) {
  std::string result;
  ZipWriter writer([&](const void* data, size_t count) {
    result.append(static_cast<const char*>(data), count);
  });
  writer.add("checkpoint/data.pkl", bytes_of(code));
  for (int i = 0; i < 4; ++i) {
    writer.add("checkpoint/data/" + std::to_string(i),
               bytes_of(std::string(128, static_cast<char>(i))));
  }
  writer.finish();
  return result;
}

std::string mutated(std::string bytes, Random& random) {
  static constexpr std::string_view kCodes =
      "(.NKMJ\x8aGX\x8c}])t\x85\x86\x87"
      "aesuqrhjcRQ\x80";
  const int changes = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = random() % bytes.size();
    switch (random() % 6) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random() % 2 == 0 ? 0xFF : random());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 40));
        break;
      case 4:
        bytes.erase(at, random() % 20);
        break;
      default:
        bytes[at] = kCodes[random() % kCodes.size()];
    }
  }
  return bytes;
}

// Walks what was read; tensors must fit their records.
size_t visit(const PickledValue& value, const ZipReader& archive) {
  size_t count = 1;
  if (const auto* dict = value.as_dict()) {
    for (const auto& [key, item] : *dict) count += visit(key, archive) + visit(item, archive);
  }
  if (const auto* list = value.as_list()) {
    for (const auto& item : *list) count += visit(item, archive);
  }
  const auto* tensor = value.as_tensor();
  if (tensor == nullptr) return count;
  int64_t last = tensor->offset;
  bool is_empty = false;
  for (size_t i = 0; i < tensor->sizes.size(); ++i) {
    is_empty = is_empty || tensor->sizes[i] == 0;
    last += (tensor->sizes[i] - 1) * tensor->strides[i];
  }
  const bool fits = is_empty || (last >= 0 && last < tensor->record_elements);
  if (!fits) throw std::logic_error("a tensor reaches out of its record");
  (void)archive.has("data/" + tensor->key);
  return count;
}

// Whether the file was read.
bool is_read(const std::string& file) {
  try {
    const ZipReader archive("fuzz", bytes_of(file));
    return visit(unpickle("fuzz", archive.record("data.pkl")), archive) > 0;
  } catch (const Error&) {
    return false;
  }
}

int run(size_t rounds) {
  const std::vector<std::string> codes = {valid_pickle(), python_pickle()};
  for (const std::string& code : codes) {
    if (!is_read(archive_with(code))) {
      std::fprintf(stderr, "a valid checkpoint was refused\n");
      return 1;
    }
  }
  size_t read = 0;
  for (size_t round = 0; round < rounds; ++round) {
    Random random(round);
    const std::string& code = codes[round % codes.size()];
    // Half the time checksums are right, so that the pickle reader sees the damage.
    const bool is_inside = round % 4 < 2;
    const std::string file =
        is_inside ? archive_with(mutated(code, random)) : mutated(archive_with(code), random);
    try {
      if (is_read(file)) ++read;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "round %zu: %s\n", round, error.what());
      return 1;
    }
  }
  std::printf("%zu rounds, %zu read, %zu refused\n", rounds, read, rounds - read);
  return read > 0 && read < rounds ? 0 : 1;
}

}  // namespace
}  // namespace outboard

int main(int count, char** arguments) {
  return outboard::run(count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 40000);
}
