// Time of the CPU's step on large tensors beside a probe that moves the same bytes with the
// same threads and does one addition per stream: the ceiling that the memory sets. One JSON line
// per case. Probe and step take turns, so that both see the same neighbours. Arguments: --elements
// N (64 Mi) --threads N (0: default) --repeat N (9) --rules NAMES (AdamW) --weights NAMES (split;
// also f32, stochastic, split8) --states NAMES (fp32,8bit) --target NAME (a SIMD target, such as
// AVX2; default: the best) --cached 1 (instead: one thread, a tensor that stays in the cache, no
// probe).
#include <sys/mman.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cpu_kernels/parallel.h"
#include "cpu_kernels/step.h"
#include "cpu_kernels/targets.h"
#include "offload/host_update.h"
#include "outboard/error.h"
#include "outboard/options.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "quant/random.h"
#include "quant/rounding.h"

namespace outboard {
namespace {

struct Options {
  size_t elements = size_t{64} << 20;
  int threads = 0;
  int repeat = 9;
  bool is_cached = false;
  std::string target;
  std::vector<std::string> rules = {"AdamW"};
  std::vector<std::string> weights = {"f32", "split"};
  std::vector<std::string> states = {"fp32", "8bit"};
};

/// How many elements stay in the first-level cache with all their arrays, if their state is small.
constexpr size_t kCachedElements = size_t{4} << 10;

/// How weights are stored; gradients have their type.
struct Weights {
  const char* name;
  DType type;
  MasterFormat master;
};

constexpr Weights kWeights[] = {
    {"f32", DType::kF32, MasterFormat::kWeight},
    {"split", DType::kBF16, MasterFormat::kSplit},
    {"split8", DType::kBF16, MasterFormat::kSplit8},
    {"stochastic", DType::kBF16, MasterFormat::kStochastic},
};

/// What is updated, and how.
struct Layout {
  const RuleInfo* rule;
  Weights weights;
  std::string states;

  [[nodiscard]] std::string name() const {
    std::string name;
    for (const char c : rule->name) name += static_cast<char>(std::tolower(c));
    name += weights.type == DType::kBF16 ? "_bf16_" : "_";
    return name + weights.name + (states == "fp32" ? std::string() : "_" + states);
  }
};

/// Anonymous memory on huge pages where the system gives them, as the optimizer's own host memory.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(round_up(bytes, size_t{2} << 20)) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    madvise(data_, bytes_, MADV_HUGEPAGE);
  }
  ~Memory() { munmap(data_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  size_t bytes_;
  void* data_;
};

float uniform(uint64_t index) { return static_cast<float>(splitmix64(index) >> 40) * 0x1p-24f; }

/// One state array in its format.
struct State {
  StateFormat format;
  Memory codes;
  Memory scales;

  State(StateFormat stored, size_t count)
      : format(stored), codes(stored.code_bytes(count)), scales(scale_bytes(count) + 1) {}

  [[nodiscard]] size_t scale_bytes(size_t count) const { return format.scale_count(count) * 4; }
  [[nodiscard]] StateArray array() const {
    return {codes.as<void>(), format.block_elements == 0 ? nullptr : scales.as<float>(),
            format.block_elements};
  }
};

/// The arrays of one tensor.
struct Tensor {
  const RuleInfo* rule;
  Weights weights;
  size_t elements;
  Memory gradient;
  Memory weight;
  Memory master;
  std::vector<std::unique_ptr<State>> states;

  Tensor(size_t count, const Layout& layout, cpu::Arena& arena)
      : rule(layout.rule),
        weights(layout.weights),
        elements(count),
        gradient(count * bytes_of(weights.type)),
        weight(count * bytes_of(weights.type)),
        master(count * bytes_of(weights.master) + 1) {
    const StateFormats formats = state_formats_named(layout.states);
    for (const StateInfo& state : rule->states) {
      if (state.needed_by >= 0) break;  // its hyper-parameter is 0 by default
      states.push_back(std::make_unique<State>(
          state.is_signed ? formats.signed_state : formats.unsigned_state, count));
    }
    // Touched by the threads that use it later.
    arena.run(count, kTileElements,
              [this](size_t first, size_t last) { fill(first, last - first); });
  }

  void fill(size_t first, size_t count) const {
    std::vector<float> values(round_up(count, kTileElements));
    for (size_t k = 0; k < states.size(); ++k) {
      const float shift = rule->states[k].is_signed ? 0.5f : 0.0f;
      for (size_t i = 0; i < count; ++i) values[i] = uniform(4 * (first + i) + 2 + k % 2) - shift;
      encode(*states[k], values, first);
    }
    for (size_t i = first; i < first + count; ++i) fill_weight(i);
  }

  void encode(const State& state, const std::vector<float>& values, size_t first) const {
    const Codec c = codec(state.format.format);
    if (c.is_plain_f32) {
      std::copy_n(values.data(), std::min(values.size(), elements - first),
                  state.codes.as<float>() + first);
    } else {
      c.encode(values.data(), first, values.size(), elements, {}, 0, state.array());
    }
  }

  void fill_weight(size_t i) const {
    const float g = uniform(4 * i) - 0.5f;
    const float p = uniform(4 * i + 1) - 0.5f;
    if (weights.type == DType::kBF16) {
      gradient.as<uint16_t>()[i] = quant::bf16_nearest(g);
      weight.as<uint16_t>()[i] = quant::bf16_nearest(p);  // and what lies beside it stays 0
    } else {
      gradient.as<float>()[i] = g;
      weight.as<float>()[i] = p;
    }
  }

  [[nodiscard]] cpu::ParameterUpdate update() const {
    std::vector<double> hyper;
    for (const HyperParameter& h : rule->hyper_parameters) hyper.push_back(h.default_value);
    cpu::ParameterUpdate update = {};
    update.rule = rule->id;
    update.scalars = rule->scalars(hyper, 10, 1.0);
    update.elements = elements;
    update.gradient = gradient.as<void>();
    update.weight = weight.as<void>();
    for (size_t k = 0; k < states.size(); ++k) {
      update.states[k] = states[k]->array();
      update.formats[k] = states[k]->format;
    }
    update.step = 10;
    update.gradient_type = update.weight_type = weights.type;
    update.master_format = weights.master;
    if (bytes_of(weights.master) > 0) update.master = master.as<void>();
    return update;
  }

  /// Bytes that a step reads and writes.
  [[nodiscard]] double traffic() const {
    const auto count = static_cast<double>(elements);
    double bytes =
        count * static_cast<double>(3 * bytes_of(weights.type) + 2 * bytes_of(weights.master));
    for (const auto& state : states) {
      bytes += 2 * static_cast<double>(state->format.code_bytes(elements) +
                                       state->scale_bytes(elements));
    }
    return bytes;
  }
};

/// Adds `mask` to `count` numbers. With the mask 0, which no compiler can know, this moves every
/// byte and changes none.
template <class Element>
void add_mask(Element* values, size_t count, uint32_t mask) {
  const auto narrow = static_cast<Element>(mask);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<Element>(values[i] + narrow);
}

/// The same, but adds `gradient & mask`.
template <class Element>
void add_gradient(const Element* __restrict gradient, Element* __restrict weight, size_t count,
                  uint32_t mask) {
  const auto narrow = static_cast<Element>(mask);
  for (size_t i = 0; i < count; ++i) {
    weight[i] = static_cast<Element>(weight[i] + (gradient[i] & narrow));
  }
}

/// A state's part that belongs to elements [first, first + count).
void probe_state(const State& state, size_t first, size_t count, uint32_t mask) {
  const size_t bits = format_info(state.format.format).code_bits;
  add_mask(state.codes.as<uint32_t>() + first * bits / 32, count * bits / 32, mask);
  const size_t block = state.format.block_elements;
  if (block != 0) add_mask(state.scales.as<uint32_t>() + first / block, count / block, mask);
}

/// The step's reads and writes, tile by tile, without its arithmetic.
void probe(const Tensor& t, size_t first, size_t last, uint32_t mask) {
  for (size_t i = first; i < last; i += kTileElements) {
    const size_t count = std::min(last - i, kTileElements);
    if (t.weights.type == DType::kBF16) {
      add_gradient(t.gradient.as<uint16_t>() + i, t.weight.as<uint16_t>() + i, count, mask);
    } else {
      add_gradient(t.gradient.as<uint32_t>() + i, t.weight.as<uint32_t>() + i, count, mask);
    }
    const size_t master = bytes_of(t.weights.master);
    if (master == 1) add_mask(t.master.as<uint8_t>() + i, count, mask);
    if (master == 2) add_mask(t.master.as<uint16_t>() + i, count, mask);
    for (const auto& state : t.states) probe_state(*state, i, count, mask);
  }
}

double seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Times {
  std::vector<double> step;
  std::vector<double> ceiling;
};

struct Piece {
  size_t tensor;
  size_t first;
  size_t last;
};

/// Calls body(tensor, first, last) as the host lane does: small tensors together, a chunk at a
/// time.
template <class Body>
void in_chunks(const std::vector<std::unique_ptr<Tensor>>& tensors, cpu::Arena& arena, Body body) {
  const size_t chunk_elements = EngineOptions().chunk_elements;
  std::vector<Piece> pieces;
  std::vector<size_t> lengths;
  size_t elements = 0;
  const auto flush = [&] {
    arena.run_many(lengths, kGrainElements, [&](size_t i, size_t first, size_t last) {
      body(pieces[i].tensor, pieces[i].first + first, pieces[i].first + last);
    });
    pieces.clear();
    lengths.clear();
    elements = 0;
  };
  for (size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    for (size_t first = 0; first < tensors[tensor]->elements; first += chunk_elements) {
      const size_t last = std::min(first + chunk_elements, tensors[tensor]->elements);
      if (elements + (last - first) > chunk_elements) flush();
      pieces.push_back({tensor, first, last});
      lengths.push_back(last - first);
      elements += last - first;
    }
  }
  flush();
}

void run_probe(const std::vector<std::unique_ptr<Tensor>>& tensors, cpu::Arena& arena) {
  volatile uint32_t hidden_mask = 0;
  const uint32_t mask = hidden_mask;
  in_chunks(tensors, arena, [&](size_t tensor, size_t first, size_t last) {
    probe(*tensors[tensor], first, last, mask);
  });
}

void run_step(const std::vector<std::unique_ptr<Tensor>>& tensors, cpu::Arena& arena) {
  std::vector<cpu::ResolvedUpdate> updates;
  for (const auto& tensor : tensors) updates.emplace_back(tensor->update());
  in_chunks(tensors, arena,
            [&](size_t tensor, size_t first, size_t last) { updates[tensor].run(first, last); });
}

Times measure(const std::vector<std::unique_ptr<Tensor>>& tensors, cpu::Arena& arena, int repeat) {
  Times times;
  for (int i = 0; i <= repeat; ++i) {
    const double ceiling = seconds([&] { run_probe(tensors, arena); });
    const double step = seconds([&] { run_step(tensors, arena); });
    if (i == 0) continue;  // the first round warms up
    times.ceiling.push_back(ceiling);
    times.step.push_back(step);
  }
  return times;
}

void run_case(const Options& options, const Layout& layout, size_t tensor_count) {
  cpu::Arena arena(options.threads);
  const size_t each = options.elements / tensor_count;
  std::vector<std::unique_ptr<Tensor>> tensors;
  for (size_t i = 0; i < tensor_count; ++i) {
    tensors.push_back(std::make_unique<Tensor>(each, layout, arena));
  }
  const Times times = measure(tensors, arena, options.repeat);
  const double elements = static_cast<double>(each * tensor_count);
  const double bytes = tensors[0]->traffic() * static_cast<double>(tensor_count);
  const double step = median(times.step);
  const double ceiling = median(times.ceiling);
  const double least_step = *std::min_element(times.step.begin(), times.step.end());
  const double least_ceiling = *std::min_element(times.ceiling.begin(), times.ceiling.end());
  std::printf(
      "{\"benchmark\": \"cpu_step\", \"case\": \"%s\", \"target\": \"%s\", \"threads\": %d, "
      "\"tensors\": %zu, \"elements\": %.0f, \"bytes_per_element\": %.4g, "
      "\"ns_per_element\": %.4f, \"ns_per_element_min\": %.4f, \"gb_per_s\": %.2f, "
      "\"ceiling_ns_per_element\": %.4f, \"ceiling_ns_per_element_min\": %.4f, "
      "\"ratio_to_ceiling\": %.4f, \"ratio_to_ceiling_min\": %.4f}\n",
      layout.name().c_str(), cpu::chosen_target().c_str(), arena.threads(), tensor_count, elements,
      bytes / elements, step / elements * 1e9, least_step / elements * 1e9, bytes / step * 1e-9,
      ceiling / elements * 1e9, least_ceiling / elements * 1e9, step / ceiling,
      least_step / least_ceiling);
  std::fflush(stdout);
}

/// The arithmetic alone: steps of a tensor in the cache, the best of many short measurements.
void run_cached(const Options& options, const Layout& layout) {
  constexpr int kSteps = 8;
  cpu::Arena arena(1);
  const Tensor tensor(kCachedElements, layout, arena);
  const cpu::ResolvedUpdate update(tensor.update());
  double least = 1e9;
  arena.run(1, 1, [&](size_t, size_t) {
    for (int i = 0; i < options.repeat * 400; ++i) {
      least = std::min(least, seconds([&] {
                         for (int k = 0; k < kSteps; ++k) update.run(0, kCachedElements);
                       }));
    }
  });
  std::printf(
      "{\"benchmark\": \"cpu_step_cached\", \"case\": \"%s\", \"target\": \"%s\", \"threads\": 1, "
      "\"elements\": %zu, \"ns_per_element_min\": %.4f}\n",
      layout.name().c_str(), cpu::chosen_target().c_str(), kCachedElements,
      least / (kSteps * static_cast<double>(kCachedElements)) * 1e9);
  std::fflush(stdout);
}

std::vector<std::string> names_in(const char* list) {
  std::vector<std::string> all;
  std::istringstream names(list);
  for (std::string name; std::getline(names, name, ',');) all.push_back(name);
  return all;
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string_view name = arguments[i];
    const long long value = std::atoll(arguments[i + 1]);
    if (name == "--elements") options.elements = static_cast<size_t>(value);
    if (name == "--threads") options.threads = static_cast<int>(value);
    if (name == "--repeat") options.repeat = static_cast<int>(value);
    if (name == "--cached") options.is_cached = value != 0;
    if (name == "--target") options.target = arguments[i + 1];
    if (name == "--rules") options.rules = names_in(arguments[i + 1]);
    if (name == "--weights") options.weights = names_in(arguments[i + 1]);
    if (name == "--states") options.states = names_in(arguments[i + 1]);
  }
  return options;
}

/// Every rule with all weights and states.
std::vector<Layout> layouts(const Options& options) {
  std::vector<Layout> all;
  for (const std::string& rule : options.rules) {
    for (const std::string& name : options.weights) {
      const auto* weights = std::find_if(std::begin(kWeights), std::end(kWeights),
                                         [&](const Weights& w) { return w.name == name; });
      if (weights == std::end(kWeights)) {
        fail(ErrorKind::kValue, "bench_cpu_step", "--weights \"", name,
             "\" is unknown; one of f32, split, split8, stochastic");
      }
      for (const std::string& states : options.states) {
        all.push_back({&rule_named(rule), *weights, states});
      }
    }
  }
  return all;
}

void run_all(const Options& options) {
  for (const cpu::Target& target : cpu::supported_targets()) {
    if (target.name == options.target) cpu::force_target(target.bit);
  }
  for (const Layout& layout : layouts(options)) {
    if (options.is_cached) {
      run_cached(options, layout);
    } else {
      run_case(options, layout, 1);
      run_case(options, layout, 128);
    }
  }
}

}  // namespace
}  // namespace outboard

int main(int count, char** arguments) {
  outboard::run_all(outboard::parse(count, arguments));
  return 0;
}
