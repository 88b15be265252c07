// Time of the CPU's AdamW step on large tensors beside a probe that moves the same bytes with the
// same threads and does one addition per stream: the ceiling that the memory sets. One JSON line
// per case. Probe and step take turns, so that both see the same neighbours. Arguments: --elements
// N (64 Mi) --threads N (0: default) --repeat N (9) --states NAMES (fp32,8bit: state formats of the
// cases with a split master) --target NAME (a SIMD target, such as AVX2; default: the best)
// --cached 1 (instead: one thread, a tensor that stays in the cache, no probe).
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
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
  std::vector<std::string> states = {"fp32", "8bit"};
};

/// How many elements stay in the first-level cache with all their arrays, if their state is small.
constexpr size_t kCachedElements = size_t{4} << 10;

/// What a tensor is made of: fp32 throughout, or a bf16 gradient and a split bf16 weight.
struct Layout {
  bool is_split;
  std::string states;

  [[nodiscard]] std::string name() const {
    return (is_split ? "adamw_bf16_split" : "adamw_f32") +
           (states == "fp32" ? std::string() : "_" + states);
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
  size_t elements;
  bool is_split;
  Memory gradient;
  Memory weight;
  Memory low;
  State m;
  State v;

  Tensor(size_t count, const Layout& layout, cpu::Arena& arena)
      : elements(count),
        is_split(layout.is_split),
        gradient(count * (is_split ? 2 : 4)),
        weight(count * (is_split ? 2 : 4)),
        low(is_split ? count * 2 : 1),
        m(state_formats_named(layout.states).signed_state, count),
        v(state_formats_named(layout.states).unsigned_state, count) {
    // Touched by the threads that use it later.
    arena.run(count, kTileElements,
              [this](size_t first, size_t last) { fill(first, last - first); });
  }

  void fill(size_t first, size_t count) const {
    std::vector<float> values(round_up(count, kTileElements));
    for (size_t i = 0; i < count; ++i) values[i] = uniform(4 * (first + i) + 2) - 0.5f;
    encode(m, values, first);
    for (size_t i = 0; i < count; ++i) values[i] = uniform(4 * (first + i) + 3);
    encode(v, values, first);
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
    if (is_split) {
      gradient.as<uint16_t>()[i] = quant::bf16_nearest(g);
      weight.as<uint16_t>()[i] = quant::split_f32(p).high;
      low.as<int16_t>()[i] = quant::split_f32(p).low;
    } else {
      gradient.as<float>()[i] = g;
      weight.as<float>()[i] = p;
    }
  }

  [[nodiscard]] cpu::ParameterUpdate update() const {
    const RuleInfo& rule = rule_named("AdamW");
    std::vector<double> hyper;
    for (const HyperParameter& h : rule.hyper_parameters) hyper.push_back(h.default_value);
    cpu::ParameterUpdate update = {};
    update.rule = rule.id;
    update.scalars = rule.scalars(hyper, 10, 1.0);
    update.elements = elements;
    update.gradient = gradient.as<void>();
    update.weight = weight.as<void>();
    update.states = {m.array(), v.array()};
    update.formats = {m.format, v.format};
    update.step = 10;
    if (is_split) {
      update.gradient_type = update.weight_type = DType::kBF16;
      update.master_format = MasterFormat::kSplit;
      update.master = low.as<void>();
    }
    return update;
  }

  /// Bytes that a step reads and writes.
  [[nodiscard]] double traffic() const {
    const auto count = static_cast<double>(elements);
    double bytes = count * (is_split ? 10 : 12);
    for (const State* state : {&m, &v}) {
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
    if (t.is_split) {
      add_gradient(t.gradient.as<uint16_t>() + i, t.weight.as<uint16_t>() + i, count, mask);
      add_mask(t.low.as<uint16_t>() + i, count, mask);
    } else {
      add_gradient(t.gradient.as<uint32_t>() + i, t.weight.as<uint32_t>() + i, count, mask);
    }
    probe_state(t.m, i, count, mask);
    probe_state(t.v, i, count, mask);
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
    if (name == "--states") {
      options.states.clear();
      std::istringstream names(arguments[i + 1]);
      for (std::string state; std::getline(names, state, ',');) options.states.push_back(state);
    }
  }
  return options;
}

void run_all(const Options& options) {
  for (const cpu::Target& target : cpu::supported_targets()) {
    if (target.name == options.target) cpu::force_target(target.bit);
  }
  std::vector<Layout> layouts = {{.is_split = false, .states = "fp32"}};
  for (const std::string& states : options.states) {
    layouts.push_back({.is_split = true, .states = states});
  }
  for (const Layout& layout : layouts) {
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
