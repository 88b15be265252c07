// The fused step: one kernel template over a rule, the element types and the state formats, and its
// launcher. One launch updates any number of parameters, each thread block a piece of one of them.
// Formulas are the rules' own (include/outboard/rules), formats are quant/*.cuh.
#ifndef OUTBOARD_GPU_KERNELS_FUSED_STEP_CUH_
#define OUTBOARD_GPU_KERNELS_FUSED_STEP_CUH_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <type_traits>

#include "gpu_kernels/cuda_check.h"
#include "gpu_kernels/launch.h"
#include "gpu_kernels/model_access.cuh"
#include "outboard_device_codecs.cuh"  // generated from formats.def: the codec of every format

namespace outboard::gpu {

inline constexpr int kWarpLanes = 32;
inline constexpr int kBlockThreads = 256;

/// Element types fixed at compile time: the code for every other type folds away.
template <DType kGradient, DType kWeight, MasterFormat kMaster>
struct FixedTypes {
  static constexpr LaunchTypes kTypes{kGradient, kWeight, kMaster};
  static constexpr bool kIsFixed = true;
  static constexpr bool kAreNarrow =
      kGradient != DType::kF32 && kWeight != DType::kF32 && kMaster != MasterFormat::kF32;
  static bool match(const LaunchTypes& types) { return types == kTypes; }
  static __device__ __forceinline__ constexpr LaunchTypes of(const LaunchTypes&) { return kTypes; }
};

/// Element types read at run time; every branch is uniform over the launch.
struct AnyTypes {
  static constexpr bool kIsFixed = false;
  static constexpr bool kAreNarrow = false;
  static bool match(const LaunchTypes&) { return true; }
  static __device__ __forceinline__ LaunchTypes of(const LaunchTypes& types) { return types; }
};

/// The device codec of a format: CodecOf<Format::kF32>::type is quant::device::F32.
template <Format>
struct CodecOf;
#define OUTBOARD_FORMAT(codec, stem)   \
  template <>                          \
  struct CodecOf<Format::k##codec> {   \
    using type = quant::device::codec; \
  };
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT

/// State formats fixed at compile time: one for signed states, one for the others.
template <Format kSigned, Format kUnsigned>
struct FixedFormats {
  static constexpr bool kAreNarrow = kSigned != Format::kF32 && kUnsigned != Format::kF32;
  static constexpr bool kHasBlocks =
      CodecOf<kSigned>::type::kHasBlocks || CodecOf<kUnsigned>::type::kHasBlocks;
  static constexpr bool match(bool is_signed, Format format) {
    return format == (is_signed ? kSigned : kUnsigned);
  }
  /// Calls `action` with the codec of a state.
  template <class Action>
  static __device__ __forceinline__ void with_codec(bool is_signed, Format, const Action& action) {
    if (is_signed) {
      action(typename CodecOf<kSigned>::type{});
    } else {
      action(typename CodecOf<kUnsigned>::type{});
    }
  }
};

/// A codec that looks its format up at run time. Its functions are not inlined: one copy of every
/// codec serves all states and all element types of a rule, which keeps the build short.
struct AnyCodec {
  Format format;

  template <class Action>
  __device__ __forceinline__ void dispatch(const Action& action) const {
    switch (format) {
#define OUTBOARD_FORMAT(type, stem) \
  case Format::k##type:             \
    action(quant::device::type{});  \
    break;
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
    }
  }
  template <int kRun>
  __device__ __noinline__ void load(const device::DeviceStateArray& array, uint64_t first,
                                    uint32_t* words) const {
    dispatch([&](auto codec) { codec.template load<kRun>(array, first, words); });
  }
  template <int kRun>
  __device__ __noinline__ void decode(const device::DeviceStateArray& array, uint64_t first,
                                      const uint32_t* words, float* values) const {
    dispatch([&](auto codec) { codec.template decode<kRun>(array, first, words, values); });
  }
  template <int kRun>
  __device__ __noinline__ void store(const device::DeviceStateArray& array, uint64_t first,
                                     const float* values, const device::RandomRun& random) const {
    dispatch([&](auto codec) { codec.template store<kRun>(array, first, values, random); });
  }
};

/// State formats read at run time.
struct AnyFormats {
  static constexpr bool kAreNarrow = true;
  static constexpr bool kHasBlocks = true;
  static constexpr bool match(bool, Format) { return true; }
  template <class Action>
  static __device__ __forceinline__ void with_codec(bool, Format format, const Action& action) {
    action(AnyCodec{format});
  }
};

/// A rule's states as constants that device code can use.
template <class Rule>
struct RuleStates {
  static constexpr int kCount = static_cast<int>(Rule::kStates.size());
  static_assert(kCount <= static_cast<int>(kMaxStates));
  static constexpr int kSlots = kCount > 0 ? kCount : 1;

  template <class Claim>
  static constexpr uint32_t mask(Claim claim) {
    uint32_t bits = 0;
    for (int s = 0; s < kCount; ++s) bits |= claim(Rule::kStates[s]) ? 1u << s : 0u;
    return bits;
  }
  static constexpr uint32_t kSigned = mask([](const StateInfo& state) { return state.is_signed; });
  static constexpr uint32_t kAlways =
      mask([](const StateInfo& state) { return state.needed_by < 0; });
};

/// Everything a launch needs, by value in constant memory.
template <class Rule>
struct StepArguments {
  typename Rule::template Scalars<float> scalars;
  DeviceTable table;
  LaunchTypes types;
  std::array<StateFormat, kMaxStates> formats;
  uint32_t step;
  uint32_t unit_elements;  ///< of the longest blocks, at least a tile
};

/// Updates kRun elements of `parameter` in this lane: all loads first, so that they overlap.
template <class Rule, class Types, class Formats, int kRun, bool kWhole>
__device__ __forceinline__ void update_run(const StepArguments<Rule>& arguments,
                                           const DeviceParameter& parameter, Run run) {
  using States = RuleStates<Rule>;
  const LaunchTypes types = Types::of(arguments.types);
  const auto exists = [&](int s) {
    return ((States::kAlways >> s) & 1) != 0 || ((arguments.table.state_mask >> s) & 1) != 0;
  };
  const auto with_codec = [&](int s, const auto& action) {
    Formats::with_codec(((States::kSigned >> s) & 1) != 0, arguments.formats[s].format, action);
  };
  const auto array = [&](int s) {
    return device::DeviceStateArray{parameter.codes[s], parameter.scales[s],
                                    arguments.formats[s].block_elements};
  };

  uint32_t gradient_words[kRun];
  uint32_t state_words[States::kSlots][kRun];
  WeightRun<kRun, kWhole> weight;
  load_run<kRun, kWhole>(types.gradient, parameter.gradient, run, gradient_words);
  weight.load(types, parameter.weight, parameter.master, run);
#pragma unroll
  for (int s = 0; s < States::kCount; ++s) {
    if (!exists(s)) continue;
    with_codec(s,
               [&](auto codec) { codec.template load<kRun>(array(s), run.first, state_words[s]); });
  }

  float gradient[kRun];
  float value[kRun];
  float state[States::kSlots][kRun] = {};
  widen<kRun>(types.gradient, gradient_words, gradient);
  weight.decode(types, value);
#pragma unroll
  for (int s = 0; s < States::kCount; ++s) {
    if (!exists(s)) continue;
    with_codec(s, [&](auto codec) {
      codec.template decode<kRun>(array(s), run.first, state_words[s], state[s]);
    });
  }

#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    float element[States::kSlots];
#pragma unroll
    for (int s = 0; s < States::kSlots; ++s) element[s] = state[s][i];
    Rule::update(arguments.scalars, gradient[i], value[i], element);
    const bool is_padding = !kWhole && i >= run.count;
    if (is_padding) value[i] = 0;
#pragma unroll
    for (int s = 0; s < States::kSlots; ++s) state[s][i] = is_padding ? 0 : element[s];
  }

  device::RandomRun random{parameter.random_key, arguments.step, /*stream=*/0,
                           parameter.element_offset + run.first};
  weight.store(types, value, random, parameter.weight, parameter.master, run);
#pragma unroll
  for (int s = 0; s < States::kCount; ++s) {
    if (!exists(s)) continue;
    random.stream = static_cast<uint32_t>(s) + 1;
    with_codec(
        s, [&](auto codec) { codec.template store<kRun>(array(s), run.first, state[s], random); });
  }
}

/// Blocks that must fit on a multiprocessor. 4 leave a thread 64 registers; with 3 and 80 registers
/// an H200 is 3 to 5 % slower on 16-bit weights and states.
template <class Types>
inline constexpr int kResidentBlocks = Types::kIsFixed ? 4 : 3;

/// One block updates kBlockElements elements of one parameter, each warp 32 * kRun at a time.
template <class Rule, class Types, class Formats, int kRun>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<Types>)
    fused_step(const __grid_constant__ StepArguments<Rule> arguments) {
  const BlockWork work = arguments.table.blocks[blockIdx.x];
  const DeviceParameter parameter = arguments.table.parameters[work.parameter];
  const LaunchTypes types = Types::of(arguments.types);
  const uint64_t misalignment =
      reinterpret_cast<uint64_t>(parameter.gradient) % (kRun * bytes_of(types.gradient)) % 16 +
      reinterpret_cast<uint64_t>(parameter.weight) % (kRun * bytes_of(types.weight)) % 16;
  const uint64_t whole_elements = misalignment == 0 ? parameter.elements : 0;

  constexpr uint64_t kWarpElements = kWarpLanes * kRun;
  const uint64_t begin = work.part * kBlockElements;
  const uint64_t unit = arguments.unit_elements;
  const uint64_t padded = (parameter.elements + unit - 1) / unit * unit;
  const uint64_t end = begin + kBlockElements < padded ? begin + kBlockElements : padded;
  const uint64_t warp = threadIdx.x / kWarpLanes;
  const uint64_t lane = threadIdx.x % kWarpLanes;
  for (uint64_t strip = begin + warp * kWarpElements; strip < end; strip += kBlockThreads * kRun) {
    Run run{strip + lane * kRun, kRun};
    if (strip + kWarpElements <= whole_elements) {
      update_run<Rule, Types, Formats, kRun, true>(arguments, parameter, run);
    } else {
      const int64_t left = static_cast<int64_t>(parameter.elements - run.first);
      run.count = left < kRun ? static_cast<int>(left < 0 ? 0 : left) : kRun;
      update_run<Rule, Types, Formats, kRun, false>(arguments, parameter, run);
    }
  }
}

/// Launches the kernel for one choice of types and formats.
template <class Rule, class Types, class Formats>
void launch_case(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  // 16 bytes a lane where every array is narrow, and runs of 8 where lanes share a block; else runs
  // of 4, so that fp32 arrays are read in whole lines by each access.
  constexpr int kRun = Formats::kHasBlocks || (Types::kAreNarrow && Formats::kAreNarrow) ? 8 : 4;
  fused_step<Rule, Types, Formats, kRun>
      <<<arguments.table.block_count, kBlockThreads, 0, stream>>>(arguments);
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the fused step");
}

/// Launches if `Types` and `Formats` are those of the launch; returns whether it did.
template <class Rule, class Types, class Formats>
bool launch_if(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  if (!Types::match(arguments.types)) return false;
  for (int s = 0; s < RuleStates<Rule>::kCount; ++s) {
    const bool exists = ((arguments.table.state_mask >> s) & 1) != 0;
    const bool is_signed = ((RuleStates<Rule>::kSigned >> s) & 1) != 0;
    if (exists && !Formats::match(is_signed, arguments.formats[s].format)) return false;
  }
  launch_case<Rule, Types, Formats>(arguments, stream);
  return true;
}

/// Tries the compiled formats for one choice of types.
template <class Rule, class Types>
bool launch_with_types(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  using Plain = FixedFormats<Format::kF32, Format::kF32>;
  using Narrow = FixedFormats<Format::kBF16, Format::kBF16Stochastic>;
  using EightBit = FixedFormats<Format::kSym8, Format::kRoot8>;
  return launch_if<Rule, Types, Plain>(arguments, stream) ||
         launch_if<Rule, Types, Narrow>(arguments, stream) ||
         launch_if<Rule, Types, EightBit>(arguments, stream);
}

/// The launcher behind launch_<stem>(): the common types and formats have kernels of their own, any
/// other combination runs through one kernel that branches, uniformly, at each load and store.
template <class Rule>
void launch_rule(const LaunchKey& key, const DeviceTable& table, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  uint32_t unit_elements = kTileElements;
  for (const StateFormat& format : key.formats) {
    unit_elements = std::max(unit_elements, static_cast<uint32_t>(format.unit_elements()));
  }
  const StepArguments<Rule> arguments{
      .scalars = key.scalars.as<typename Rule::template Scalars<float>>(),
      .table = table,
      .types = {key.gradient_type, key.weight_type, key.master_format},
      .formats = key.formats,
      .step = key.step,
      .unit_elements = unit_elements};
  using Single = FixedTypes<DType::kF32, DType::kF32, MasterFormat::kWeight>;
  using Split = FixedTypes<DType::kBF16, DType::kBF16, MasterFormat::kSplit>;
  using Stochastic = FixedTypes<DType::kBF16, DType::kBF16, MasterFormat::kStochastic>;
  if (launch_with_types<Rule, Single>(arguments, stream)) return;
  if (launch_with_types<Rule, Split>(arguments, stream)) return;
  if (launch_with_types<Rule, Stochastic>(arguments, stream)) return;
  launch_case<Rule, AnyTypes, AnyFormats>(arguments, stream);
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_FUSED_STEP_CUH_
