// Device time of the fused AdamW step on the shapes of a GPT of 1.3e9 parameters, and of the sums
// of squares of its gradients, beside a device copy in the same run. One JSON line per case.
// Contents are random: kernels can run faster on zeros. Results are proved by the tests, not here.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
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
  DeviceArrays(const std::vector<size_t>& sizes, size_t element_bytes) {
    size_t bytes = 0;
    for (const size_t size : sizes) {
      offsets_.push_back(bytes);
      bytes += round_up(padded_elements(size) * element_bytes, 512);
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
    for (size_t first = 0; first < bytes_; first += pattern.size()) {
      check(cudaMemcpy(static_cast<std::byte*>(data_) + first, pattern.data(),
                       std::min(pattern.size(), bytes_ - first), cudaMemcpyHostToDevice),
            "cudaMemcpy");
    }
  }

 private:
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
    StepCase{"bf16 weight, stochastic rounding", DType::kBF16, MasterFormat::kStochastic}};

gpu::LaunchKey adamw_key(const StepCase& step_case, StateFormats formats) {
  const RuleInfo& rule = rule_named("AdamW");
  std::vector<double> hyper;
  for (const auto& parameter : rule.hyper_parameters) hyper.push_back(parameter.default_value);
  gpu::LaunchKey key{};
  key.rule = rule.id;
  key.scalars = rule.scalars(hyper, 10, 1.0);
  key.gradient_type = key.weight_type = step_case.type;
  key.master_format = step_case.master;
  key.formats = {formats.signed_state, formats.unsigned_state};
  key.step = 10;
  return key;
}

void run_step(const std::vector<size_t>& sizes, const StepCase& step_case, std::string_view state,
              double copy) {
  const StateFormats formats = state_formats_named(state);
  const DType state_type =
      format_info(formats.signed_state.format).code_bits == 32 ? DType::kF32 : DType::kBF16;
  const size_t element_bytes = bytes_of(step_case.type);
  const size_t master_bytes = bytes_of(step_case.master);
  const size_t state_bytes = bytes_of(state_type);
  DeviceArrays gradient(sizes, element_bytes);
  DeviceArrays weight(sizes, element_bytes);
  DeviceArrays master(sizes, master_bytes);
  DeviceArrays first(sizes, state_bytes);
  DeviceArrays second(sizes, state_bytes);
  gradient.fill(step_case.type, 1e-3f, true, 1);
  weight.fill(step_case.type, 2e-2f, true, 2);
  if (master_bytes > 0) master.fill(DType::kBF16, 1.0f, true, 3);
  first.fill(state_type, 1e-4f, true, 4);
  second.fill(state_type, 1e-7f, false, 5);

  std::vector<gpu::DeviceParameter> parameters(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    parameters[i].gradient = gradient.at(i);
    parameters[i].weight = weight.at(i);
    if (master_bytes > 0) parameters[i].master = master.at(i);
    parameters[i].codes = {first.at(i), second.at(i)};
    parameters[i].elements = sizes[i];
    parameters[i].random_key = random_key(1, i);
  }
  const gpu::LaunchKey key = adamw_key(step_case, formats);
  gpu::StepLauncher launcher;
  const Milliseconds ms = time_on_device([&] { launcher.launch(key, parameters, nullptr); });
  const size_t bytes = element_bytes + 2 * (element_bytes + master_bytes + 2 * state_bytes);
  report("AdamW, " + std::string(step_case.name) + ", " + std::string(state) + " state",
         total(sizes), static_cast<double>(bytes), ms, copy);
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

int run() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("{\"benchmark\": \"gpu_step\", \"skipped\": \"no GPU in this machine\"}\n");
    return 0;
  }
  const std::vector<size_t> sizes = gpt_parameters(2048, 24, 50304);
  const double copy = copy_bandwidth();
  for (const StepCase& step_case : kStepCases) {
    for (const std::string_view state : {"fp32", "bf16"}) run_step(sizes, step_case, state, copy);
  }
  for (const DType type : {DType::kF32, DType::kBF16}) {
    run_sum_of_squares(sizes, type, copy);
    run_sum_of_squares({size_t{1} << 30}, type, copy);
  }
  return 0;
}

}  // namespace
}  // namespace outboard

int main() { return outboard::run(); }
