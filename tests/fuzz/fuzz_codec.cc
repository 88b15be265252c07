// Differential fuzzing of the state codecs: any bytes as fp32 values, any key and offset, must give
// the same codes and decoded values on every SIMD target as the scalar definition. Built with
// libFuzzer (-DOUTBOARD_LIBFUZZER, clang) it takes its inputs; else it runs a bounded, reproducible
// loop and fails by exit code.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu_kernels/targets.h"
#include "outboard_codecs.h"
#include "quant/codec.h"
#include "support/reference_codec.h"

namespace outboard {
namespace {

/// What one input stands for.
struct Input {
  std::vector<float> values;
  size_t elements;
  RandomContext random;
  uint64_t offset;
};

Input parse(const uint8_t* data, size_t size) {
  uint8_t head[24] = {};
  std::memcpy(head, data, std::min(size, sizeof(head)));
  Input input = {};
  std::memcpy(&input.random.key, head, 8);
  std::memcpy(&input.offset, head + 8, 8);
  std::memcpy(&input.random.step, head + 16, 4);
  input.random.stream = head[20] % 5;
  const size_t body = size > sizeof(head) ? size - sizeof(head) : 0;
  input.elements = std::max<size_t>(1, body / sizeof(float));
  input.values.resize(padded_elements(input.elements));
  if (body >= sizeof(float)) {
    std::memcpy(input.values.data(), data + sizeof(head), body / sizeof(float) * sizeof(float));
  }
  return input;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

template <class FormatType>
void check_format(const Input& input, Format format, const char* target) {
  std::vector<float> values = input.values;
  if constexpr (!FormatType::kIsSigned) {
    for (float& value : values) value = std::fabs(value);
  }
  const StateFormat state = state_format(format);
  values.resize(round_up(values.size(), state.unit_elements()));
  testing::CodecArray expected(state, input.elements);
  testing::CodecArray actual(state, input.elements);
  testing::reference_encode<FormatType>(values, input.elements, input.random, input.offset,
                                        expected.view());
  codec(format).encode(values.data(), 0, values.size(), input.elements, input.random, input.offset,
                       actual.view());
  const std::vector<float> read =
      testing::reference_decode<FormatType>(expected.view(), values.size());
  std::vector<float> decoded(values.size());
  codec(format).decode(actual.view(), 0, values.size(), decoded.data());
  for (size_t i = 0; i < values.size(); ++i) {
    if (same(read[i], decoded[i])) continue;
    std::fprintf(
        stderr, "format %s, target %s, element %zu of %zu, value %a: expected %a, got %a\n",
        FormatType::kName.data(), target, i, input.elements, values[i], read[i], decoded[i]);
    std::abort();
  }
  const bool has_codes = FormatType::kBlockElements == 0 || actual == expected;
  if (has_codes) return;
  std::fprintf(stderr, "format %s, target %s: other codes or scales\n", FormatType::kName.data(),
               target);
  std::abort();
}

void check(const uint8_t* data, size_t size) {
  const Input input = parse(data, size);
  for (const cpu::Target& target : cpu::supported_targets()) {
    cpu::force_target(target.bit);
#define OUTBOARD_FORMAT(type, stem) \
  check_format<quant::type>(input, Format::k##type, target.name.c_str());
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
  }
  cpu::force_target(0);
}

}  // namespace
}  // namespace outboard

#if defined(OUTBOARD_LIBFUZZER)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  outboard::check(data, size);
  return 0;
}
#else
int main() {
  constexpr uint64_t kInputs = 3000;
  for (uint64_t seed = 0; seed < kInputs; ++seed) {
    std::vector<uint8_t> bytes(outboard::splitmix64(seed) % 2600);
    for (size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<uint8_t>(outboard::splitmix64(seed << 32 | i));
    }
    outboard::check(bytes.data(), bytes.size());
  }
  return 0;
}
#endif
