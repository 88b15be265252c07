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
void check_element(const Input& input, size_t i, typename FormatType::Code code, float decoded,
                   const char* target) {
  const RandomContext& random = input.random;
  const uint32_t draw = random16(random.key, random.step, random.stream, input.offset + i);
  const float expected =
      i < input.elements ? FormatType::decode(FormatType::encode(input.values[i], draw)) : 0.0f;
  if (same(expected, FormatType::decode(code)) && same(expected, decoded)) return;
  std::fprintf(stderr, "format %s, target %s, element %zu of %zu, value %a: expected %a, got %a\n",
               FormatType::kName.data(), target, i, input.elements, input.values[i], expected,
               decoded);
  std::abort();
}

template <class FormatType>
void check_format(const Input& input, Format format, const char* target) {
  const size_t count = input.values.size();
  std::vector<typename FormatType::Code> codes(count);
  std::vector<float> decoded(count);
  const StateArray array = {codes.data(), nullptr};
  const Codec codec_now = codec(format);
  codec_now.encode(input.values.data(), 0, count, input.elements, input.random, input.offset,
                   array);
  codec_now.decode(array, 0, count, decoded.data());
  for (size_t i = 0; i < count; ++i) {
    check_element<FormatType>(input, i, codes[i], decoded[i], target);
  }
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
