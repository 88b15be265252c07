// What the kernels of a step share: element types and formats as compile-time choices, the launch's
// arguments, and how a lane fetches and decodes a run of one parameter. Nothing is updated here.
#ifndef OUTBOARD_GPU_KERNELS_STEP_RUN_CUH_
#define OUTBOARD_GPU_KERNELS_STEP_RUN_CUH_

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <type_traits>

#include "gpu_kernels/launch.h"
#include "gpu_kernels/model_access.cuh"
#include "gpu_kernels/segment_sum.cuh"
#include "outboard_device_codecs.cuh"  // generated from formats.def: the codec of every format

namespace outboard::gpu {

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

/// Whether a codec's blocks can be longer than a warp's elements, so that its warps wait for each
/// other.
template <class Codec>
constexpr bool has_long_blocks() {
  if constexpr (Codec::kHasBlocks) return Codec::kHasLongBlocks;
  return false;
}

/// State formats fixed at compile time: one for signed states, one for the others.
template <Format kSigned, Format kUnsigned>
struct FixedFormats {
  static constexpr bool kIsFixed = true;
  static constexpr bool kAreNarrow = kSigned != Format::kF32 && kUnsigned != Format::kF32;
  static constexpr bool kHasBlocks =
      CodecOf<kSigned>::type::kHasBlocks || CodecOf<kUnsigned>::type::kHasBlocks;
  static constexpr bool kHasLongBlocks = has_long_blocks<typename CodecOf<kSigned>::type>() ||
                                         has_long_blocks<typename CodecOf<kUnsigned>::type>();
  /// Whether the kernel of a rule's common case makes do with 64 registers. fp8 spills 170 bytes
  /// then and takes 8 % longer.
  static constexpr bool kNeedsFewRegisters = !kHasLongBlocks && kSigned != Format::kE4M3;
  static __device__ __forceinline__ constexpr bool takes_roots(bool is_signed) {
    return is_signed ? CodecOf<kSigned>::type::kTakesRoots : CodecOf<kUnsigned>::type::kTakesRoots;
  }
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
  static constexpr bool kTakesRoots = false;
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
  static constexpr bool kIsFixed = false;
  static constexpr bool kAreNarrow = true;
  static constexpr bool kHasBlocks = true;
  static constexpr bool kHasLongBlocks = true;
  static constexpr bool kNeedsFewRegisters = false;
  static __device__ __forceinline__ constexpr bool takes_roots(bool) { return false; }
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
  /// States whose roots the rule forms anyway; see outboard/rule.h.
  static constexpr uint32_t kRoots = [] {
    if constexpr (requires { Rule::kRoots; }) return Rule::kRoots;
    return uint32_t{0};
  }();
  static constexpr uint32_t kAlways =
      mask([](const StateInfo& state) { return state.needed_by < 0; });
  /// States that hold rows or columns, which the fused step only reads.
  static constexpr uint32_t kVectors =
      mask([](const StateInfo& state) { return state.shape != StateShape::kElements; });
  /// Which state holds the rows; the one behind it holds the columns.
  static constexpr int kRows = [] {
    int s = 0;
    while (s < kCount && Rule::kStates[s].shape != StateShape::kRows) ++s;
    return s;
  }();
};

/// Whether state `s` is stored from the root that the rule forms.
template <class Rule, class Formats>
__device__ __forceinline__ constexpr bool gives_root(int s) {
  using States = RuleStates<Rule>;
  return ((States::kRoots >> s) & 1) != 0 && Formats::takes_roots((States::kSigned >> s) & 1);
}

/// Everything a launch needs, by value in constant memory.
template <class Rule>
struct StepArguments {
  typename Rule::template Scalars<float> scalars;
  DeviceTable table;
  LaunchTypes types;
  std::array<StateFormat, kMaxStates> formats;
  uint32_t step;
  uint32_t unit_elements;  ///< of the longest blocks, at least a tile
  DeviceNumbersTable own;
};

/// A parameter of the launch, its old weight where it is.
template <class Rule>
__device__ __forceinline__ DeviceParameter parameter_of(const StepArguments<Rule>& arguments,
                                                        const BlockWork& work) {
  DeviceParameter parameter = arguments.table.parameters[work.parameter];
  if (parameter.old_weight == nullptr) parameter.old_weight = parameter.weight;
  return parameter;
}

/// The state arrays of one parameter of a launch. kHeld: bit s: state s may exist.
template <class Rule, class Formats, uint32_t kHeld = ~0u>
struct StateAccess {
  using States = RuleStates<Rule>;
  const StepArguments<Rule>& arguments;
  const DeviceParameter& parameter;

  /// Whether state `s` exists, with a value for each element.
  __device__ __forceinline__ bool exists(int s) const {
    if ((((kHeld & ~States::kVectors) >> s) & 1) == 0) return false;
    return ((States::kAlways >> s) & 1) != 0 || ((arguments.table.state_mask >> s) & 1) != 0;
  }
  /// Whether state `s` holds the run. Only long blocks reach beyond the last tile; the answer is
  /// the same for a whole warp.
  template <bool kWhole>
  [[nodiscard]] __device__ __forceinline__ bool holds(int s, const Run& run) const {
    return kWhole || !run.is_beyond || arguments.formats[s].block_elements > kTileElements;
  }
  [[nodiscard]] __device__ __forceinline__ device::DeviceStateArray array(int s) const {
    return {parameter.codes[s], parameter.scales[s], arguments.formats[s].block_elements};
  }
  /// Calls `action` with the codec of state `s`.
  template <class Action>
  __device__ __forceinline__ void with_codec(int s, const Action& action) const {
    Formats::with_codec(((States::kSigned >> s) & 1) != 0, arguments.formats[s].format, action);
  }
};

/// A lane's run as it lies in memory.
template <class Rule, int kRun, bool kWhole>
struct RunWords {
  uint32_t gradient[kRun];
  uint32_t state[RuleStates<Rule>::kSlots][kRun] = {};
  WeightRun<kRun, kWhole> weight;
};

/// The fp32 values of a lane's run: what a rule reads and writes.
template <class Rule, int kRun>
struct RunValues {
  float gradient[kRun];
  float weight[kRun];
  float state[RuleStates<Rule>::kSlots][kRun] = {};
  /// The bits of the largest element of each state that has become its roots.
  uint32_t largest[RuleStates<Rule>::kSlots];
};

/// Fetches a run without using anything of it, so that all loads overlap.
template <class Rule, class Formats, uint32_t kHeld, int kRun, bool kWhole>
__device__ __forceinline__ void fetch_words(const LaunchTypes& types,
                                            const StateAccess<Rule, Formats, kHeld>& states,
                                            Run run, RunWords<Rule, kRun, kWhole>& words) {
  const DeviceParameter& parameter = states.parameter;
  load_run<kRun, kWhole>(types.gradient, parameter.gradient, run, words.gradient);
  words.weight.load(types, parameter.old_weight, parameter.master, run);
#pragma unroll
  for (int s = 0; s < RuleStates<Rule>::kCount; ++s) {
    if (!states.exists(s) || !states.template holds<kWhole>(s, run)) continue;
    states.with_codec(s, [&](auto codec) {
      codec.template load<kRun>(states.array(s), run.first, words.state[s]);
    });
  }
}

/// The values of a fetched run.
template <class Rule, class Formats, uint32_t kHeld, int kRun, bool kWhole>
__device__ __forceinline__ void decode_words(const LaunchTypes& types,
                                             const StateAccess<Rule, Formats, kHeld>& states,
                                             Run run, const RunWords<Rule, kRun, kWhole>& words,
                                             RunValues<Rule, kRun>& values) {
  widen<kRun>(types.gradient, words.gradient, values.gradient);
  words.weight.decode(types, values.weight);
#pragma unroll
  for (int s = 0; s < RuleStates<Rule>::kCount; ++s) {
    if (!states.exists(s)) continue;
    states.with_codec(s, [&](auto codec) {
      codec.template decode<kRun>(states.array(s), run.first, words.state[s], values.state[s]);
    });
  }
}

/// Deals elements [begin, limit) of a parameter, up to its padded end, to the block's lanes: calls
/// `action(run, words, is_fetched)` with std::true_type and a run that exists, is aligned and was
/// fetched by `fetch(run, words)`; or with std::false_type and one that may end early and is not
/// fetched. All lanes of a warp take the same way. Where types are fixed, a run is fetched while
/// the one before it is worked on: warps that start together otherwise wait and compute together,
/// and AdamW with 8-bit state takes a quarter longer on an H200. Other kernels lack the registers.
template <class Rule, class Types, int kRun, class Fetch, class Action>
__device__ __forceinline__ void for_each_run(const StepArguments<Rule>& arguments,
                                             const DeviceParameter& parameter, uint64_t begin,
                                             uint64_t limit, const Fetch& fetch,
                                             const Action& action) {
  constexpr uint32_t kWarpElements = kWarpLanes * kRun;
  constexpr uint32_t kStripElements = kBlockThreads * kRun;
  const LaunchTypes types = Types::of(arguments.types);
  const uint64_t misalignment =
      reinterpret_cast<uint64_t>(parameter.gradient) % (kRun * bytes_of(types.gradient)) % 16 +
      reinterpret_cast<uint64_t>(parameter.weight) % (kRun * bytes_of(types.weight)) % 16 +
      reinterpret_cast<uint64_t>(parameter.old_weight) % (kRun * bytes_of(types.weight)) % 16;
  const uint64_t whole_elements = misalignment == 0 ? parameter.elements : 0;
  const uint64_t unit = arguments.unit_elements;
  const uint64_t padded = (parameter.elements + unit - 1) / unit * unit;
  // From here on in 32 bits, counted from `begin`: a thread block's part is short.
  const auto from_begin = [&](uint64_t element) {
    return element <= begin ? 0u : static_cast<uint32_t>(min(element, limit) - begin);
  };
  const uint32_t end = from_begin(padded);
  const uint32_t whole_end = from_begin(whole_elements);
  const uint32_t warp_first = threadIdx.x / kWarpLanes * kWarpElements;
  const uint32_t lane_first = threadIdx.x % kWarpLanes * kRun;
  // Where a thread block shares a scale, its warps take the same way.
  const uint32_t reach = unit > kTileElements ? kStripElements - warp_first : kWarpElements;

  constexpr bool kIsAhead = Types::kIsFixed;
  RunWords<Rule, kRun, true> next;
  uint32_t strip = warp_first;
  if constexpr (kIsAhead) {
    if (strip + reach <= whole_end) fetch(Run{begin + (strip + lane_first), kRun}, next);
  }
  for (; strip < end; strip += kStripElements) {
    Run run{begin + (strip + lane_first), kRun};
    if (strip + reach <= whole_end) {
      if constexpr (kIsAhead) {
        RunWords<Rule, kRun, true> words = next;
        const uint32_t following = strip + kStripElements;
        if (following + reach <= whole_end) {
          fetch(Run{begin + (following + lane_first), kRun}, next);
        }
        action(run, words, std::true_type{});
      } else {
        fetch(run, next);
        action(run, next, std::true_type{});
      }
    } else {
      const int64_t left = static_cast<int64_t>(parameter.elements - run.first);
      run.count = left < kRun ? static_cast<int>(left < 0 ? 0 : left) : kRun;
      run.is_beyond = run.first >= padded_elements(parameter.elements);
      RunWords<Rule, kRun, false> words;
      action(run, words, std::false_type{});
    }
  }
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_STEP_RUN_CUH_
