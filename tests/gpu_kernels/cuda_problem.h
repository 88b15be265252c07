// A set of parameters that lies once in host and once in device memory, byte for byte in the same
// places, so that a step of the CPU kernels and a step of the GPU kernels can be compared with
// memcmp, guard zones and padding included.
#ifndef OUTBOARD_TESTS_GPU_KERNELS_CUDA_PROBLEM_H_
#define OUTBOARD_TESTS_GPU_KERNELS_CUDA_PROBLEM_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu_kernels/step.h"
#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "outboard/types.h"

namespace outboard::test {

/// Nullptr, or why no GPU can be used.
const char* missing_gpu();

/// Skips the running test by name where there is no GPU.
#define OUTBOARD_REQUIRE_GPU() \
  if (const char* reason = ::outboard::test::missing_gpu()) GTEST_SKIP() << reason

/// Device memory of a fixed size; frees it at the end. Throws std::runtime_error.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes);
  ~DeviceBytes();
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void upload(const void* source, size_t bytes);
  void download(void* target, size_t bytes) const;  ///< waits for the whole device first
  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

/// Weights with the masters that serve them, each once.
struct WeightKind {
  DType type;
  MasterFormat master;
};

inline constexpr std::array kWeightKinds{WeightKind{DType::kF32, MasterFormat::kWeight},
                                         WeightKind{DType::kBF16, MasterFormat::kSplit},
                                         WeightKind{DType::kBF16, MasterFormat::kSplit8},
                                         WeightKind{DType::kBF16, MasterFormat::kF32},
                                         WeightKind{DType::kBF16, MasterFormat::kStochastic},
                                         WeightKind{DType::kF16, MasterFormat::kF32}};

/// Which kernels a problem exercises.
struct Combination {
  RuleId rule;
  std::vector<double> hyper;
  DType gradient_type;
  DType weight_type;
  MasterFormat master_format;
  StateFormats formats;

  [[nodiscard]] std::string text() const;
};

/// One parameter; shifts are distances, in elements, from 16-byte alignment.
struct Shape {
  size_t elements;
  size_t gradient_shift = 0;
  size_t weight_shift = 0;
  size_t rows = 0;  ///< as a matrix; 0: chosen by the size
};

class Problem {
 public:
  Problem(Combination combination, std::vector<Shape> shapes, uint64_t seed);

  void step_on_cpu(int64_t step);

  /// Parameters are cut into pieces of `piece_elements` (0: not cut), all updated by one launch.
  void step_on_gpu(gpu::StepLauncher& launcher, int64_t step, size_t piece_elements = 0,
                   gpu::StreamHandle stream = nullptr);

  /// The same with numbers from device memory, one entry for each parameter. Gradients are not
  /// scaled then: give use_gradient_scale(1) for the CPU.
  void step_on_gpu(gpu::StepLauncher& launcher, const std::vector<gpu::DeviceNumbers>& numbers,
                   gpu::StreamHandle stream);

  /// The next step on the GPU reads its weights from a copy elsewhere; where it writes them lies
  /// nothing that could be a weight.
  void move_old_weights();

  void use_gradient_scale(double scale) { gradient_scale_ = scale; }

  /// Goes on with other hyper-parameters that have the same states.
  void use_hyper(std::vector<double> hyper) { combination_.hyper = std::move(hyper); }

  /// Goes on with another rule, which has the same states.
  void use_rule(RuleId rule, std::vector<double> hyper) {
    combination_.rule = rule;
    combination_.hyper = std::move(hyper);
  }

  /// New gradients, on both sides.
  void refresh_gradients(uint64_t seed);

  /// Empty if host and device hold the same bytes, else the first difference.
  [[nodiscard]] std::string difference() const;

 private:
  struct Array {
    std::string name;
    size_t offset;
    size_t bytes;
  };
  struct Layout {
    Array gradient, weight, master;
    std::array<Array, kMaxStates> codes, scales;
  };

  Array carve(std::string name, size_t bytes, size_t shift_bytes);
  void lay_out(size_t index);
  void fill(size_t index, uint64_t seed);
  void fill_state(const Array& codes, const Array& scales, size_t state, size_t elements,
                  uint64_t seed);
  void write(DType type, size_t offset, float value);
  [[nodiscard]] gpu::LaunchKey key(int64_t step) const;
  [[nodiscard]] std::vector<gpu::DeviceParameter> pieces(size_t piece_elements) const;
  [[nodiscard]] bool has_state(size_t state) const;
  [[nodiscard]] StateFormat format(size_t state) const;
  [[nodiscard]] size_t held(size_t state, size_t index) const;
  [[nodiscard]] static size_t rows(const Shape& shape);
  [[nodiscard]] std::string where(size_t offset) const;

  Combination combination_;
  double gradient_scale_ = 0.7;
  std::vector<Shape> shapes_;
  std::vector<Layout> layouts_;
  std::vector<std::byte> host_;
  size_t bytes_ = 0;
  std::unique_ptr<DeviceBytes> device_;
  std::unique_ptr<DeviceBytes> old_;  ///< a copy of it, where old weights lie elsewhere
};

/// Hyper-parameters that between them take every branch of a rule: the defaults, every value away
/// from zero, each flag set; only combinations that the rule allows.
std::vector<std::vector<double>> hyper_parameter_sets(const RuleInfo& rule);

}  // namespace outboard::test

#endif  // OUTBOARD_TESTS_GPU_KERNELS_CUDA_PROBLEM_H_
