// Time of the CPU's AdamW step on large tensors beside a probe that moves the same bytes with the
// same threads and does one addition per stream: the ceiling that the memory sets. One JSON line
// per case. Probe and step take turns, so that both see the same neighbours. Arguments: --elements
// N (64 Mi) --threads N (0: default) --repeat N (9).
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "cpu_kernels/parallel.h"
#include "cpu_kernels/step.h"
#include "cpu_kernels/targets.h"
#include "offload/chunk_plan.h"
#include "offload/host_update.h"
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

/// The arrays of one tensor: fp32 throughout, or a bf16 gradient and a split bf16 weight with fp32
/// states.
struct Tensor {
  size_t elements;
  bool is_split;
  Memory gradient;
  Memory weight;
  Memory low;
  Memory m;
  Memory v;

  Tensor(size_t count, bool split, cpu::Arena& arena)
      : elements(count),
        is_split(split),
        gradient(count * (split ? 2 : 4)),
        weight(count * (split ? 2 : 4)),
        low(split ? count * 2 : 1),
        m(count * 4),
        v(count * 4) {
    // Touched by the threads that use it later.
    arena.run(count, kTileElements, [this](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) fill(i);
    });
  }

  void fill(size_t i) const {
    const float g = uniform(4 * i) - 0.5f;
    const float p = uniform(4 * i + 1) - 0.5f;
    m.as<float>()[i] = uniform(4 * i + 2) - 0.5f;
    v.as<float>()[i] = uniform(4 * i + 3);
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
    update.states = {StateArray{m.as<void>(), nullptr}, StateArray{v.as<void>(), nullptr}};
    update.step = 10;
    if (is_split) {
      update.gradient_type = update.weight_type = DType::kBF16;
      update.master_format = MasterFormat::kSplit;
      update.master = low.as<void>();
    }
    return update;
  }
};

constexpr double bytes_per_element(bool is_split) { return is_split ? 26 : 28; }

/// Adds `gradient & mask` to one stream and `mask` to the others. With the mask 0, which no
/// compiler can know, this moves every byte and changes none.
template <class Element>
void add_to_streams(const Element* gradient, Element* weight, uint32_t* __restrict m,
                    uint32_t* __restrict v, size_t elements, uint32_t mask) {
  const auto narrow = static_cast<Element>(mask);
  for (size_t i = 0; i < elements; ++i) {
    weight[i] = static_cast<Element>(weight[i] + (gradient[i] & narrow));
  }
  for (size_t i = 0; i < elements; ++i) m[i] += mask;
  for (size_t i = 0; i < elements; ++i) v[i] += mask;
}

/// The step's reads and writes, tile by tile, without its arithmetic.
void probe(const Tensor& t, size_t first, size_t last, uint32_t mask) {
  for (size_t i = first; i < last; i += kTileElements) {
    const size_t count = std::min(last - i, kTileElements);
    uint32_t* m = t.m.as<uint32_t>() + i;
    uint32_t* v = t.v.as<uint32_t>() + i;
    if (t.is_split) {
      add_to_streams(t.gradient.as<uint16_t>() + i, t.weight.as<uint16_t>() + i, m, v, count, mask);
      uint16_t* low = t.low.as<uint16_t>() + i;
      for (size_t k = 0; k < count; ++k) low[k] = static_cast<uint16_t>(low[k] + mask);
    } else {
      add_to_streams(t.gradient.as<uint32_t>() + i, t.weight.as<uint32_t>() + i, m, v, count, mask);
    }
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

/// Calls body(tensor, first, last) as the pipeline does: small tensors together, a chunk at a time.
template <class Body>
void in_chunks(const std::vector<std::unique_ptr<Tensor>>& tensors, cpu::Arena& arena, Body body) {
  std::vector<PlannedParameter> planned;
  for (const auto& tensor : tensors) planned.push_back({planned.size(), tensor->elements});
  for (const Chunk& chunk : plan_chunks(planned, EngineOptions().chunk_elements)) {
    std::vector<size_t> lengths;
    for (const Piece& piece : chunk.pieces) lengths.push_back(piece.last - piece.first);
    arena.run_many(lengths, kGrainElements, [&](size_t i, size_t first, size_t last) {
      const Piece& piece = chunk.pieces[i];
      body(piece.parameter, piece.first + first, piece.first + last);
    });
  }
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

void run_case(const Options& options, bool is_split, size_t tensor_count) {
  cpu::Arena arena(options.threads);
  const size_t each = options.elements / tensor_count;
  std::vector<std::unique_ptr<Tensor>> tensors;
  for (size_t i = 0; i < tensor_count; ++i) {
    tensors.push_back(std::make_unique<Tensor>(each, is_split, arena));
  }
  const Times times = measure(tensors, arena, options.repeat);
  const double elements = static_cast<double>(each * tensor_count);
  const double step = median(times.step);
  const double ceiling = median(times.ceiling);
  const double least_step = *std::min_element(times.step.begin(), times.step.end());
  const double least_ceiling = *std::min_element(times.ceiling.begin(), times.ceiling.end());
  std::printf(
      "{\"benchmark\": \"cpu_step\", \"case\": \"adamw_%s\", \"target\": \"%s\", \"threads\": %d, "
      "\"tensors\": %zu, \"elements\": %.0f, \"ns_per_element\": %.4f, "
      "\"ns_per_element_min\": %.4f, \"gb_per_s\": %.2f, \"ceiling_ns_per_element\": %.4f, "
      "\"ceiling_ns_per_element_min\": %.4f, \"ratio_to_ceiling\": %.4f, "
      "\"ratio_to_ceiling_min\": %.4f}\n",
      is_split ? "bf16_split" : "f32", cpu::chosen_target().c_str(), arena.threads(), tensor_count,
      elements, step / elements * 1e9, least_step / elements * 1e9,
      bytes_per_element(is_split) * elements / step * 1e-9, ceiling / elements * 1e9,
      least_ceiling / elements * 1e9, step / ceiling, least_step / least_ceiling);
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
  }
  return options;
}

}  // namespace
}  // namespace outboard

int main(int count, char** arguments) {
  const outboard::Options options = outboard::parse(count, arguments);
  for (const bool is_split : {false, true}) {
    outboard::run_case(options, is_split, 1);
    outboard::run_case(options, is_split, 128);
  }
  return 0;
}
