// Device time of the fused step on the shapes of a GPT of 1.3e9 parameters, and of the sums
// of squares of its gradients, beside a device copy in the same run. One JSON line per case.
// Contents are random: kernels can run faster on zeros. Results are proved by the tests, not here.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "gpu_kernels/gradient_math.h"
#include "gpu_kernels/step.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "outboard/types.h"
#include "quant/random.h"
#include "quant/rounding.h"

namespace outboard {
namespace {

constexpr int kWarmUps = 3;
constexpr int kRepeats = 12;

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(status));
  std::exit(1);
}

/// Elements of each parameter of a decoder of `width`, `layers` and a tied embedding.
std::vector<size_t> gpt_parameters(size_t width, size_t layers, size_t vocabulary) {
  std::vector<size_t> sizes{vocabulary * width};
  for (size_t layer = 0; layer < layers; ++layer) {
    for (int norm = 0; norm < 4; ++norm) sizes.push_back(width);
    for (const size_t rows : {3, 1, 4, 4}) sizes.push_back(rows * width * width);
  }
  sizes.insert(sizes.end(), {width, width});
  return sizes;
}

size_t total(const std::vector<size_t>& sizes) {
  size_t sum = 0;
  for (const size_t size : sizes) sum += size;
  return sum;
}

/// Device memory that holds one array of every parameter, each at the alignment of an allocator.
class DeviceArrays {
 public:
  DeviceArrays(const std::vector<size_t>& sizes, size_t element_bytes)
      : DeviceArrays(sizes, [&](size_t size) { return padded_elements(size) * element_bytes; }) {}
  DeviceArrays(const std::vector<size_t>& sizes, const std::function<size_t(size_t)>& bytes_of) {
    size_t bytes = 0;
    for (const size_t size : sizes) {
      offsets_.push_back(bytes);
      bytes += round_up(bytes_of(size), 512);
    }
    bytes_ = bytes;
    check(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "cudaMalloc");
  }
  ~DeviceArrays() { cudaFree(data_); }
  DeviceArrays(const DeviceArrays&) = delete;
  DeviceArrays& operator=(const DeviceArrays&) = delete;

  [[nodiscard]] void* at(size_t parameter) const {
    return static_cast<std::byte*>(data_) + offsets_[parameter];
  }

  void fill_with_random_bytes(uint64_t seed) {
    std::vector<uint64_t> pattern(size_t{1} << 20);
    for (size_t i = 0; i < pattern.size(); ++i) pattern[i] = splitmix64(seed + i);
    repeat(pattern.data(), pattern.size() * sizeof(uint64_t));
  }

  /// Random values of `magnitude`, as `type`; a pattern of 4 Mi elements, repeated.
  void fill(DType type, float magnitude, bool is_signed, uint64_t seed) {
    constexpr size_t kPattern = size_t{1} << 22;
    std::vector<std::byte> pattern(kPattern * bytes_of(type));
    for (size_t i = 0; i < kPattern; ++i) {
      const uint64_t bits = splitmix64(seed + i);
      const float uniform = static_cast<float>(bits >> 40) * 0x1p-24f;
      const float value = magnitude * (is_signed && (bits & 1) != 0 ? -uniform : uniform);
      const uint16_t half = quant::bf16_nearest(value);
      std::memcpy(&pattern[i * bytes_of(type)],
                  type == DType::kF32 ? static_cast<const void*>(&value) : &half, bytes_of(type));
    }
    repeat(pattern.data(), pattern.size());
  }

 private:
  void repeat(const void* pattern, size_t pattern_bytes) {
    for (size_t first = 0; first < bytes_; first += pattern_bytes) {
      check(cudaMemcpy(static_cast<std::byte*>(data_) + first, pattern,
                       std::min(pattern_bytes, bytes_ - first), cudaMemcpyHostToDevice),
            "cudaMemcpy");
    }
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::vector<size_t> offsets_;
};

struct Milliseconds {
  double median;
  double least;
};

Milliseconds time_on_device(const std::function<void()>& enqueue) {
  cudaEvent_t begin;
  cudaEvent_t end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<double> times;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    check(cudaEventRecord(begin, nullptr), "cudaEventRecord");
    enqueue();
    check(cudaEventRecord(end, nullptr), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (i >= kWarmUps) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front()};
}

/// GB/s of a device copy, bytes read and written.
double copy_bandwidth() {
  constexpr size_t kBytes = size_t{4} << 30;
  const std::vector<size_t> sizes{kBytes / 4};
  DeviceArrays source(sizes, 4);
  DeviceArrays target(sizes, 4);
  source.fill(DType::kF32, 1.0f, true, 1);
  const Milliseconds ms = time_on_device([&] {
    check(cudaMemcpyAsync(target.at(0), source.at(0), kBytes, cudaMemcpyDeviceToDevice, nullptr),
          "cudaMemcpyAsync");
  });
  return 2.0 * kBytes / ms.median / 1e6;
}

void report(const std::string& name, size_t elements, double bytes_per_element, Milliseconds ms,
            double copy) {
  const double bandwidth = bytes_per_element * static_cast<double>(elements) / ms.median / 1e6;
  std::printf(
      "{\"benchmark\": \"gpu_step\", \"case\": \"%s\", \"elements\": %zu, \"ms\": %.4f, "
      "\"ms_min\": %.4f, \"bytes_per_element\": %.1f, \"gb_per_s\": %.1f, "
      "\"copy_gb_per_s\": %.1f, \"ratio_to_copy\": %.4f}\n",
      name.c_str(), elements, ms.median, ms.least, bytes_per_element, bandwidth, copy,
      bandwidth / copy);
  std::fflush(stdout);
}

struct StepCase {
  std::string_view name;
  DType type;
  MasterFormat master;
};

constexpr std::array kStepCases{
    StepCase{"fp32 weight", DType::kF32, MasterFormat::kWeight},
    StepCase{"bf16 weight, split master", DType::kBF16, MasterFormat::kSplit},
    StepCase{"bf16 weight, split8 master", DType::kBF16, MasterFormat::kSplit8},
    StepCase{"bf16 weight, stochastic rounding", DType::kBF16, MasterFormat::kStochastic}};

/// The states of all parameters of one step, filled with plausible contents.
class DeviceStates {
 public:
  DeviceStates(const std::vector<size_t>& sizes, StateFormat format, bool is_signed, uint64_t seed)
      : format_(format),
        codes_(sizes, [&](size_t size) { return format.code_bytes(size); }),
        scales_(sizes, [&](size_t size) { return format.scale_count(size) * sizeof(float); }) {
    const size_t bits = format_info(format.format).code_bits;
    const float magnitude = is_signed ? 1e-4f : 1e-7f;
    if (bits < 16) {
      codes_.fill_with_random_bytes(seed);
    } else {
      codes_.fill(bits == 32 ? DType::kF32 : DType::kBF16, magnitude, is_signed, seed);
    }
    scales_.fill(DType::kF32, magnitude, false, seed + 1);
  }
  [[nodiscard]] void* codes(size_t parameter) const { return codes_.at(parameter); }
  [[nodiscard]] float* scales(size_t parameter) const {
    return static_cast<float*>(scales_.at(parameter));
  }
  [[nodiscard]] double bytes_per_element() const {
    const double scale =
        format_.block_elements == 0 ? 0 : 4.0 / static_cast<double>(format_.block_elements);
    return static_cast<double>(format_info(format_.format).code_bits) / 8 + scale;
  }

 private:
  StateFormat format_;
  DeviceArrays codes_;
  DeviceArrays scales_;
};

gpu::LaunchKey launch_key(const RuleInfo& rule, const StepCase& step_case, StateFormats formats) {
  std::vector<double> hyper;
  for (const auto& parameter : rule.hyper_parameters) {
    hyper.push_back(parameter.key == "momentum" ? 0.9 : parameter.default_value);
  }
  gpu::LaunchKey key{};
  key.rule = rule.id;
  key.scalars = rule.scalars(hyper, 10, 1.0);
  key.gradient_type = key.weight_type = step_case.type;
  key.master_format = step_case.master;
  for (size_t s = 0; s < rule.states.size(); ++s) {
    key.formats[s] = rule.states[s].is_signed ? formats.signed_state : formats.unsigned_state;
  }
  key.step = 10;
  return key;
}

void run_step(std::string_view rule_name, const std::vector<size_t>& sizes,
              const StepCase& step_case, std::string_view state, double copy) {
  const RuleInfo& rule = rule_named(rule_name);
  const gpu::LaunchKey key = launch_key(rule, step_case, state_formats_named(state));
  const size_t element_bytes = bytes_of(step_case.type);
  const size_t master_bytes = bytes_of(step_case.master);
  DeviceArrays gradient(sizes, element_bytes);
  DeviceArrays weight(sizes, element_bytes);
  DeviceArrays master(sizes, master_bytes);
  gradient.fill(step_case.type, 1e-3f, true, 1);
  weight.fill(step_case.type, 2e-2f, true, 2);
  if (master_bytes > 0) master.fill_with_random_bytes(3);
  std::vector<gpu::DeviceParameter> parameters(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    parameters[i].gradient = gradient.at(i);
    parameters[i].weight = weight.at(i);
    if (master_bytes > 0) parameters[i].master = master.at(i);
    parameters[i].elements = sizes[i];
    parameters[i].rows = std::gcd(sizes[i], size_t{1024});  // for rules that take a matrix
    parameters[i].random_key = random_key(1, i);
  }
  std::vector<std::unique_ptr<DeviceStates>> states;
  double state_bytes = 0;
  for (size_t s = 0; s < rule.states.size(); ++s) {
    const StateInfo& info = rule.states[s];
    if (info.needed_by >= 0 && info.key != "momentum_buffer") continue;
    states.push_back(std::make_unique<DeviceStates>(sizes, key.formats[s], info.is_signed, 7 * s));
    if (info.shape == StateShape::kElements) state_bytes += states.back()->bytes_per_element();
    for (size_t i = 0; i < sizes.size(); ++i) {
      parameters[i].codes[s] = states.back()->codes(i);
      parameters[i].scales[s] = states.back()->scales(i);
    }
  }
  gpu::StepLauncher launcher;
  const Milliseconds ms = time_on_device([&] { launcher.launch(key, parameters, nullptr); });
  const double bytes = static_cast<double>(3 * element_bytes + 2 * master_bytes) + 2 * state_bytes;
  std::string name = std::string(rule.name) + ", " + std::string(step_case.name) + ", " +
                     std::string(state) + " state";
  if (sizes.size() <= 1 || sizes.size() == 1000) {
    name += ", " + std::to_string(sizes.size()) + (sizes.size() == 1 ? " tensor" : " tensors");
  }
  report(name, total(sizes), bytes, ms, copy);
}

void run_sum_of_squares(const std::vector<size_t>& sizes, DType type, double copy) {
  DeviceArrays gradient(sizes, bytes_of(type));
  gradient.fill(type, 1e-3f, true, 1);
  std::vector<size_t> segments;
  for (const size_t size : sizes) segments.push_back(norm_segments(size));
  DeviceArrays sums(segments, sizeof(float));
  const Milliseconds ms = time_on_device([&] {
    for (size_t i = 0; i < sizes.size(); ++i) {
      gpu::sum_of_squares(gradient.at(i), type, sizes[i], static_cast<float*>(sums.at(i)), nullptr);
    }
  });
  report("sum of squares, " + std::string(name_of(type)) + ", " + std::to_string(sizes.size()) +
             (sizes.size() == 1 ? " tensor" : " tensors"),
         total(sizes), static_cast<double>(bytes_of(type)), ms, copy);
}

/// What the command line asks for: --states and --rules take names separated by commas, and leave
/// out the other cases.
struct Options {
  std::vector<std::string_view> states;
  std::vector<std::string_view> rules;
};

std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> names;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    names.push_back(list.substr(0, comma));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return names;
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string_view name = arguments[i];
    if (name == "--states") options.states = split(arguments[i + 1]);
    if (name == "--rules") options.rules = split(arguments[i + 1]);
  }
  return options;
}

int run(const Options& options) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("{\"benchmark\": \"gpu_step\", \"skipped\": \"no GPU in this machine\"}\n");
    return 0;
  }
  const std::vector<size_t> sizes = gpt_parameters(2048, 24, 50304);
  const double copy = copy_bandwidth();
  const std::vector<std::string_view> states =
      options.states.empty() ? std::vector<std::string_view>{"fp32", "bf16", "8bit"}
                             : options.states;
  const std::vector<std::string_view> rules =
      options.rules.empty() ? std::vector<std::string_view>{"AdamW"} : options.rules;
  for (const std::string_view rule : rules) {
    for (const StepCase& step_case : kStepCases) {
      for (const std::string_view state : states) run_step(rule, sizes, step_case, state, copy);
    }
  }
  if (!options.states.empty()) return 0;
  for (const StepCase& step_case : kStepCases) {
    if (step_case.master == MasterFormat::kWeight) continue;
    run_step("Lion", sizes, step_case, "8bit", copy);
  }
  // What many small tensors cost: the same elements as a thousand tensors and as one.
  run_step("AdamW", std::vector<size_t>(1000, 10000), kStepCases[1], "8bit", copy);
  run_step("AdamW", {size_t{1000} * 10000}, kStepCases[1], "8bit", copy);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    run_sum_of_squares(sizes, type, copy);
    run_sum_of_squares({size_t{1} << 30}, type, copy);
  }
  return 0;
}

}  // namespace
}  // namespace outboard

int main(int count, char** arguments) { return outboard::run(outboard::parse(count, arguments)); }
