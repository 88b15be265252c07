// Layout, contents, steps and comparison of the test problems; see the header.
#include "gpu_kernels/cuda_problem.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "cpu_kernels/factors.h"
#include "cpu_kernels/measure.h"
#include "cpu_kernels/step.h"
#include "quant/codec.h"
#include "quant/random.h"
#include "quant/rounding.h"
#include "support/rule_cases.h"

namespace outboard::test {
namespace {

constexpr size_t kGuardBytes = 64;
constexpr std::byte kGuard{0xA5};
constexpr uint64_t kSeed = 20;

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
  }
}

/// Signs, many binades, and now and then a zero or a subnormal; within the range of fp16.
float sample(uint64_t seed, uint64_t index) {
  const uint64_t bits = splitmix64(seed * 0x10001 + index);
  const float mantissa = 1.0f + static_cast<float>(bits & 0x7FFFFF) * 0x1p-23f;
  const int exponent = static_cast<int>((bits >> 24) % 24) - 20;
  const float sign = ((bits >> 32) & 1) != 0 ? -1.0f : 1.0f;
  const uint64_t kind = (bits >> 40) % 64;
  if (kind == 0) return sign * 0.0f;
  if (kind == 1) return sign * 1e-40f;
  return sign * std::ldexp(mantissa, exponent);
}

}  // namespace

const char* missing_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0 ? nullptr
                                                                : "no GPU in this machine";
}

DeviceBytes::DeviceBytes(size_t bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, bytes), "cudaMalloc");
  data_ = static_cast<std::byte*>(data);
}

DeviceBytes::~DeviceBytes() { cudaFree(data_); }

void DeviceBytes::upload(const void* source, size_t bytes) {
  check(cudaMemcpy(data_, source, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
}

void DeviceBytes::download(void* target, size_t bytes) const {
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  check(cudaMemcpy(target, data_, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

std::string Combination::text() const {
  std::ostringstream text;
  text << rule_info(rule).name << " hyper";
  for (const double value : hyper) text << ' ' << value;
  text << ", gradient " << name_of(gradient_type) << ", weight " << name_of(weight_type)
       << ", master " << static_cast<int>(master_format) << ", states "
       << format_info(formats.signed_state.format).name << '/'
       << format_info(formats.unsigned_state.format).name << " in blocks of "
       << formats.signed_state.block_elements << '/' << formats.unsigned_state.block_elements;
  return text.str();
}

Problem::Problem(Combination combination, std::vector<Shape> shapes, uint64_t seed)
    : combination_(std::move(combination)), shapes_(std::move(shapes)), layouts_(shapes_.size()) {
  for (size_t i = 0; i < shapes_.size(); ++i) lay_out(i);
  host_.assign(bytes_, kGuard);
  for (size_t i = 0; i < shapes_.size(); ++i) fill(i, seed + 100 * i);
  device_ = std::make_unique<DeviceBytes>(bytes_);
  device_->upload(host_.data(), bytes_);
}

bool Problem::has_state(size_t state) const {
  const auto states = rule_info(combination_.rule).states;
  if (state >= states.size()) return false;
  const int needed_by = states[state].needed_by;
  return needed_by < 0 || combination_.hyper[static_cast<size_t>(needed_by)] != 0;
}

StateFormat Problem::format(size_t state) const {
  const auto states = rule_info(combination_.rule).states;
  if (state >= states.size()) return combination_.formats.signed_state;
  return testing::format_of(states[state], combination_.formats);
}

size_t Problem::held(size_t state, size_t index) const {
  const Shape& shape = shapes_[index];
  return state_elements(rule_info(combination_.rule).states[state], shape.elements, rows(shape));
}

size_t Problem::rows(const Shape& shape) {
  return shape.rows > 0 ? shape.rows : testing::test_rows(shape.elements);
}

Problem::Array Problem::carve(std::string name, size_t bytes, size_t shift_bytes) {
  const Array array{std::move(name), round_up(bytes_ + kGuardBytes, 64) + shift_bytes, bytes};
  bytes_ = array.offset + bytes + kGuardBytes;
  return array;
}

void Problem::lay_out(size_t index) {
  const Shape& shape = shapes_[index];
  Layout& layout = layouts_[index];
  const std::string name = "parameter " + std::to_string(index) + " of " +
                           std::to_string(shape.elements) + " elements, ";
  const size_t gradient_bytes = bytes_of(combination_.gradient_type);
  const size_t weight_bytes = bytes_of(combination_.weight_type);
  layout.gradient = carve(name + "gradient", shape.elements * gradient_bytes,
                          shape.gradient_shift * gradient_bytes);
  layout.weight =
      carve(name + "weight", shape.elements * weight_bytes, shape.weight_shift * weight_bytes);
  layout.master = carve(name + "master",
                        padded_elements(shape.elements) * bytes_of(combination_.master_format), 0);
  for (size_t s = 0; s < kMaxStates; ++s) {
    if (!has_state(s)) continue;
    const StateFormat info = format(s);
    const std::string state = name + "state " + std::to_string(s);
    const size_t elements = held(s, index);
    layout.codes[s] = carve(state + " codes", info.code_bytes(elements), 0);
    layout.scales[s] = carve(state + " scales", info.scale_count(elements) * sizeof(float), 0);
  }
}

void Problem::write(DType type, size_t offset, float value) {
  const uint16_t half =
      type == DType::kBF16 ? quant::bf16_nearest(value) : quant::f16_nearest(value);
  const bool is_f32 = type == DType::kF32;
  std::memcpy(&host_[offset], is_f32 ? static_cast<const void*>(&value) : &half, bytes_of(type));
}

void Problem::fill(size_t index, uint64_t seed) {
  const Layout& layout = layouts_[index];
  const size_t elements = shapes_[index].elements;
  std::memset(&host_[layout.master.offset], 0, layout.master.bytes);
  for (size_t i = 0; i < elements; ++i) {
    write(combination_.gradient_type,
          layout.gradient.offset + i * bytes_of(combination_.gradient_type), sample(seed, i));
    const float weight = sample(seed + 1, i);
    const size_t at = layout.weight.offset + i * bytes_of(combination_.weight_type);
    write(combination_.weight_type, at, weight);
    if (combination_.master_format == MasterFormat::kF32) {
      write(DType::kF32, layout.master.offset + i * sizeof(float), weight);
    } else if (combination_.master_format == MasterFormat::kSplit) {
      const quant::SplitF32 split = quant::split_f32(weight);
      std::memcpy(&host_[at], &split.high, sizeof(split.high));
      std::memcpy(&host_[layout.master.offset + i * sizeof(split.low)], &split.low,
                  sizeof(split.low));
    } else if (combination_.master_format == MasterFormat::kSplit8) {
      const quant::Split8F32 split = quant::split8_f32(weight, 0);
      std::memcpy(&host_[at], &split.high, sizeof(split.high));
      std::memcpy(&host_[layout.master.offset + i], &split.low, sizeof(split.low));
    }
  }
  for (size_t s = 0; s < kMaxStates; ++s) {
    if (!has_state(s)) continue;
    fill_state(layout.codes[s], layout.scales[s], s, held(s, index), seed + 2 + s);
  }
}

void Problem::fill_state(const Array& codes, const Array& scales, size_t state, size_t elements,
                         uint64_t seed) {
  const StateFormat info = format(state);
  std::vector<float> values(round_up(elements, info.unit_elements()), 0.0f);
  const bool is_signed = rule_info(combination_.rule).states[state].is_signed;
  for (size_t i = 0; i < elements; ++i) {
    const float value = sample(seed, i) * 0x1p-6f;
    values[i] = is_signed ? value : std::fabs(value);
  }
  const StateArray array{&host_[codes.offset], reinterpret_cast<float*>(&host_[scales.offset]),
                         info.block_elements};
  codec(info.format).encode(values.data(), 0, values.size(), elements, {}, 0, array);
}

void Problem::refresh_gradients(uint64_t seed) {
  const size_t element_bytes = bytes_of(combination_.gradient_type);
  for (size_t p = 0; p < shapes_.size(); ++p) {
    for (size_t i = 0; i < shapes_[p].elements; ++i) {
      write(combination_.gradient_type, layouts_[p].gradient.offset + i * element_bytes,
            sample(seed + 100 * p, i));
    }
    const Array& gradient = layouts_[p].gradient;
    check(cudaMemcpy(device_->data() + gradient.offset, &host_[gradient.offset], gradient.bytes,
                     cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
}

void Problem::step_on_cpu(int64_t step) {
  for (size_t p = 0; p < shapes_.size(); ++p) {
    const Layout& layout = layouts_[p];
    cpu::ParameterUpdate update;
    update.rule = combination_.rule;
    update.scalars =
        rule_info(combination_.rule).scalars(combination_.hyper, step, gradient_scale_);
    update.elements = shapes_[p].elements;
    update.rows = rows(shapes_[p]);
    update.gradient = &host_[layout.gradient.offset];
    update.gradient_type = combination_.gradient_type;
    update.weight = &host_[layout.weight.offset];
    update.weight_type = combination_.weight_type;
    update.master_format = combination_.master_format;
    if (layout.master.bytes > 0) update.master = &host_[layout.master.offset];
    for (size_t s = 0; s < kMaxStates; ++s) {
      if (!has_state(s)) continue;
      update.formats[s] = format(s);
      update.states[s].codes = &host_[layout.codes[s].offset];
      update.states[s].scales = reinterpret_cast<float*>(&host_[layout.scales[s].offset]);
      update.states[s].block_elements = update.formats[s].block_elements;
    }
    update.random_key = random_key(kSeed, p);
    update.step = static_cast<uint32_t>(step);
    if (rule_info(update.rule).with_norms != nullptr) {
      cpu::ParameterNorms norms(update);
      norms.run(0, update.elements);
      update.scalars = norms.scalars();
    }
    if (rule_info(update.rule).factor_scalars != nullptr && update.elements > 0) {
      update.scalars = cpu::factored_scalars(update);
    }
    cpu::ResolvedUpdate(update).run(0, update.elements);
  }
}

gpu::LaunchKey Problem::key(int64_t step) const {
  gpu::LaunchKey key{};
  key.rule = combination_.rule;
  key.scalars = rule_info(combination_.rule).scalars(combination_.hyper, step, gradient_scale_);
  key.gradient_type = combination_.gradient_type;
  key.weight_type = combination_.weight_type;
  key.master_format = combination_.master_format;
  key.step = static_cast<uint32_t>(step);
  for (size_t s = 0; s < kMaxStates; ++s) key.formats[s] = format(s);
  return key;
}

std::vector<gpu::DeviceParameter> Problem::pieces(size_t piece_elements) const {
  std::vector<gpu::DeviceParameter> pieces;
  for (size_t p = 0; p < shapes_.size(); ++p) {
    const Layout& layout = layouts_[p];
    const size_t elements = shapes_[p].elements;
    const size_t length = piece_elements == 0 ? elements : piece_elements;
    for (size_t first = 0; first < elements; first += length) {
      gpu::DeviceParameter piece;
      const auto at = [&](const Array& array, size_t element_bytes) {
        return device_->data() + array.offset + first * element_bytes;
      };
      piece.gradient = at(layout.gradient, bytes_of(combination_.gradient_type));
      const size_t weight_bytes = bytes_of(combination_.weight_type);
      piece.weight = at(layout.weight, weight_bytes);
      if (old_ != nullptr) {
        piece.old_weight = old_->data() + layout.weight.offset + first * weight_bytes;
      }
      if (layout.master.bytes > 0) {
        piece.master = at(layout.master, bytes_of(combination_.master_format));
      }
      for (size_t s = 0; s < kMaxStates; ++s) {
        if (!has_state(s)) continue;
        const StateFormat info = format(s);
        piece.codes[s] = device_->data() + layout.codes[s].offset +
                         first * format_info(info.format).code_bits / 8;
        if (info.block_elements > 0) {
          piece.scales[s] = reinterpret_cast<float*>(device_->data() + layout.scales[s].offset) +
                            first / info.block_elements;
        }
      }
      piece.elements = std::min(length, elements - first);
      piece.element_offset = first;
      piece.rows = rows(shapes_[p]);
      piece.random_key = random_key(kSeed, p);
      pieces.push_back(piece);
    }
  }
  return pieces;
}

void Problem::move_old_weights() {
  old_ = std::make_unique<DeviceBytes>(bytes_);
  std::vector<std::byte> image(bytes_);
  device_->download(image.data(), bytes_);
  old_->upload(image.data(), bytes_);
  for (const Layout& layout : layouts_) {
    std::memset(&image[layout.weight.offset], 0xFF, layout.weight.bytes);  // NaN in every type
  }
  device_->upload(image.data(), bytes_);
}

void Problem::step_on_gpu(gpu::StepLauncher& launcher, int64_t step, size_t piece_elements,
                          gpu::StreamHandle stream) {
  launcher.launch(key(step), pieces(piece_elements), stream);
}

void Problem::step_on_gpu(gpu::StepLauncher& launcher,
                          const std::vector<gpu::DeviceNumbers>& numbers,
                          gpu::StreamHandle stream) {
  launcher.launch(key(1), pieces(0), numbers, stream);
}

std::string Problem::difference() const {
  std::vector<std::byte> device(bytes_);
  device_->download(device.data(), bytes_);
  if (std::memcmp(device.data(), host_.data(), bytes_) == 0) return "";
  size_t at = 0;
  while (device[at] == host_[at]) ++at;
  uint32_t host_word = 0;
  uint32_t device_word = 0;
  std::memcpy(&host_word, &host_[at / 4 * 4], 4);
  std::memcpy(&device_word, &device[at / 4 * 4], 4);
  std::ostringstream text;
  text << combination_.text() << ": " << where(at) << ": word of the CPU " << std::hex << host_word
       << ", of the GPU " << device_word;
  return text.str();
}

std::string Problem::where(size_t offset) const {
  const auto inside = [&](const Array& array, const std::string& position) {
    const bool holds = offset >= array.offset && offset < array.offset + array.bytes;
    return holds ? array.name + position + std::to_string(offset - array.offset) : "";
  };
  for (const Layout& layout : layouts_) {
    for (const Array* array : {&layout.gradient, &layout.weight, &layout.master}) {
      if (std::string name = inside(*array, ", byte "); !name.empty()) return name;
    }
    for (size_t s = 0; s < kMaxStates; ++s) {
      if (std::string name = inside(layout.codes[s], ", byte "); !name.empty()) return name;
      if (std::string name = inside(layout.scales[s], ", byte "); !name.empty()) return name;
    }
  }
  return "guard zone, byte " + std::to_string(offset);
}

std::vector<std::vector<double>> hyper_parameter_sets(const RuleInfo& rule) {
  const auto& parameters = rule.hyper_parameters;
  std::vector<std::vector<double>> bases(3, std::vector<double>(parameters.size()));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double value = parameters[i].default_value;
    const double moved = value != 0 || parameters[i].is_flag ? value : 0.1;
    bool makes_state = false;
    for (const StateInfo& state : rule.states) {
      makes_state = makes_state || state.needed_by == static_cast<int>(i);
    }
    bases[0][i] = value;
    bases[1][i] = makes_state ? moved : value;
    bases[2][i] = moved;
  }
  std::vector<std::vector<double>> sets = bases;
  for (const auto& base : bases) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (!parameters[i].is_flag) continue;
      sets.push_back(base);
      sets.back()[i] = 1;
    }
  }
  std::erase_if(sets, [&](const auto& hyper) { return rule.check(hyper) != nullptr; });
  std::sort(sets.begin(), sets.end());
  sets.erase(std::unique(sets.begin(), sets.end()), sets.end());
  return sets;
}

}  // namespace outboard::test
