// The fused step: one kernel template over a rule, the element types and the state formats, and its
// launcher. One launch updates any number of parameters, each thread block a piece of one of them.
// Formulas are the rules' own (include/outboard/rules), formats are quant/*.cuh.
#ifndef OUTBOARD_GPU_KERNELS_FUSED_STEP_CUH_
#define OUTBOARD_GPU_KERNELS_FUSED_STEP_CUH_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "gpu_kernels/cuda_check.h"
#include "gpu_kernels/device_numbers.cuh"
#include "gpu_kernels/factors.cuh"
#include "gpu_kernels/fast_arithmetic.cuh"
#include "gpu_kernels/launch.h"
#include "gpu_kernels/measure.cuh"
#include "gpu_kernels/step_run.cuh"

namespace outboard::gpu {

/// Whether a rule names a common case; see outboard/rule.h.
template <class Rule>
concept HasUsualCase = requires(const typename Rule::template Scalars<float>& scalars) {
  Rule::is_usual(scalars);
};

/// Applies the rule to a run, in place. States that give their roots (see outboard/rule.h) to a
/// codec that takes them become these; `count` elements exist. kUsual: the rule's common case;
/// returns true if the values are void, because it was not that common.
template <class Rule, class Formats, int kRun, bool kUsual>
__device__ __forceinline__ bool update_values(const typename Rule::template Scalars<float>& scalars,
                                              int count, RunValues<Rule, kRun>& values) {
  using States = RuleStates<Rule>;
  FastArithmetic arithmetic;
#pragma unroll
  for (int s = 0; s < States::kSlots; ++s) values.largest[s] = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    float element[States::kSlots];
    float roots[kMaxStates];
#pragma unroll
    for (int s = 0; s < States::kSlots; ++s) element[s] = values.state[s][i];
    if constexpr (kUsual) {
      Rule::update_usual(scalars, values.gradient[i], values.weight[i], element, roots, arithmetic);
      arithmetic.expect_ordinary(values.weight[i]);
    } else if constexpr (States::kRoots != 0) {
      Rule::update(scalars, values.gradient[i], values.weight[i], element, roots);
    } else {
      Rule::update(scalars, values.gradient[i], values.weight[i], element);
    }
#pragma unroll
    for (int s = 0; s < States::kSlots; ++s) {
      if constexpr (kUsual) {
        if (((Rule::kUsualStates >> s) & 1) == 0) continue;
      }
      values.state[s][i] = gives_root<Rule, Formats>(s) ? roots[s] : element[s];
      if (!gives_root<Rule, Formats>(s) || i >= count) continue;
      const uint32_t magnitude = exact::bits(element[s]) & quant::kMagnitudeMask;
      values.largest[s] = quant::larger_magnitude(values.largest[s], magnitude);
    }
  }
  if constexpr (kUsual) return arithmetic.is_rare();
  return false;
}

/// `parameter` from element `begin` on, which begins a block of every format: what follows is
/// addressed by offsets of 32 bits.
template <class Rule, class Types, class Formats>
__device__ __forceinline__ DeviceParameter part_from(const StepArguments<Rule>& arguments,
                                                     DeviceParameter parameter, uint64_t begin) {
  using States = RuleStates<Rule>;
  const LaunchTypes types = Types::of(arguments.types);
  const auto moved = [begin](auto* pointer, uint64_t bits) {
    return reinterpret_cast<decltype(pointer)>(reinterpret_cast<uintptr_t>(pointer) +
                                               begin * bits / 8);
  };
  parameter.gradient = moved(parameter.gradient, 8 * bytes_of(types.gradient));
  parameter.weight = moved(parameter.weight, 8 * bytes_of(types.weight));
  parameter.old_weight = moved(parameter.old_weight, 8 * bytes_of(types.weight));
  parameter.master = moved(parameter.master, 8 * bytes_of(types.master));
#pragma unroll
  for (int s = 0; s < States::kCount; ++s) {
    Formats::with_codec(((States::kSigned >> s) & 1) != 0, Format{}, [&](auto codec) {
      parameter.codes[s] = moved(parameter.codes[s], decltype(codec)::kCodeBits);
      if constexpr (decltype(codec)::kHasBlocks) {
        parameter.scales[s] += codec.block_of(arguments.formats[s].block_elements, begin);
      }
    });
  }
  parameter.elements -= begin;
  parameter.element_offset += begin;
  return parameter;
}

/// The states that the kernel for a rule's common case knows, or any.
template <class Rule, bool kUsual>
constexpr uint32_t held_states() {
  if constexpr (kUsual) return Rule::kUsualStates;
  return ~0u;
}

/// Stores what a rule made of a run. kAreUsual: weights are ordinary, no root of a state is 0.
template <class Rule, class Formats, uint32_t kHeld, bool kAreUsual, int kRun, bool kWhole>
__device__ __forceinline__ void store_values(const LaunchTypes& types,
                                             const StateAccess<Rule, Formats, kHeld>& states,
                                             uint32_t step, Run run,
                                             const RunValues<Rule, kRun>& values,
                                             WeightRun<kRun, kWhole>& weight) {
  const DeviceParameter& parameter = states.parameter;
  device::RandomRun random{parameter.random_key, step, /*stream=*/0,
                           parameter.element_offset + run.first};
  weight.template store<kAreUsual>(types, values.weight, random, parameter.weight, parameter.master,
                                   run);
#pragma unroll
  for (int s = 0; s < RuleStates<Rule>::kCount; ++s) {
    if (!states.exists(s) || !states.template holds<kWhole>(s, run)) continue;
    random.stream = static_cast<uint32_t>(s) + 1;
    states.with_codec(s, [&](auto codec) {
      if constexpr (decltype(codec)::kTakesRoots) {
        if (gives_root<Rule, Formats>(s)) {
          codec.template store_roots<kRun, kAreUsual>(states.array(s), run.first, values.state[s],
                                                      values.largest[s], random);
          return;
        }
      }
      codec.template store<kRun>(states.array(s), run.first, values.state[s], random);
    });
  }
}

/// Updates kRun elements in this lane. `words`: the run as fetched, if kWhole; else memory for it.
template <class Rule, class Types, class Formats, uint32_t kHeld, bool kUsual, bool kOwn, int kRun,
          bool kWhole>
__device__ __forceinline__ void update_run(const StepArguments<Rule>& arguments,
                                           const typename Rule::template Scalars<float>& scalars,
                                           const StepCount<kOwn>& step,
                                           const DeviceParameter& parameter, Run run,
                                           RunWords<Rule, kRun, kWhole>& words) {
  using States = RuleStates<Rule>;
  const LaunchTypes types = Types::of(arguments.types);
  const StateAccess<Rule, Formats, kHeld> states{arguments, parameter};
  RunValues<Rule, kRun> values;
  if constexpr (!kWhole) fetch_words(types, states, run, words);
  decode_words(types, states, run, words, values);
  constexpr bool kMayBeVoid = kUsual && kWhole;
  // Where warps wait for each other they store by the same code.
  constexpr bool kStoresApart = kMayBeVoid && !Formats::kHasLongBlocks;
  const int count = kWhole ? kRun : run.count;
  if constexpr (NeedsFactors<Rule>) {
    join_factors<Rule, kRun>(Rule::factor_scalars(scalars), parameter, run.first, count, values);
  }
  const bool is_void = update_values<Rule, Formats, kRun, kMayBeVoid>(scalars, count, values);
  if constexpr (kMayBeVoid) {
    if (__any_sync(0xFFFFFFFFu, is_void)) {  // nothing is stored yet: the warp begins again
      fetch_words(types, states, run, words);
      if constexpr (kStoresApart) {
        update_run<Rule, Types, Formats, kHeld, /*kUsual=*/false>(arguments, scalars, step,
                                                                  parameter, run, words);
        return;
      }
      decode_words(types, states, run, words, values);
      update_values<Rule, Formats, kRun, false>(scalars, count, values);
    }
  }
  if constexpr (!kWhole) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i < run.count) continue;
      values.weight[i] = 0;
#pragma unroll
      for (int s = 0; s < States::kSlots; ++s) values.state[s][i] = 0;
    }
  }
  store_values<Rule, Formats, kHeld, kStoresApart>(types, states, step.of(arguments), run, values,
                                                   words.weight);
}

/// Blocks that must fit on a multiprocessor: 3 leave a thread 80 registers, 4 leave 64, with which
/// most kernels would spill; with 2 blocks too few warps are left to hide what each waits for.
template <class Types, class Formats, bool kUsual>
inline constexpr int kResidentBlocks = (kUsual && Types::kIsFixed && Formats::kNeedsFewRegisters)
                                           ? 4
                                           : 3;

/// One block updates kBlockElements elements of one parameter, each warp 32 * kRun at a time.
/// kUsual: compiled for the rule's common case only. kOwn: each parameter has its own scalars and
/// step, in device memory.
template <class Rule, class Types, class Formats, int kRun, bool kUsual, bool kOwn>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<Types, Formats, kUsual>)
    fused_step(const __grid_constant__ StepArguments<Rule> arguments) {
  const BlockWork work = arguments.table.blocks[blockIdx.x];
  const uint64_t first = work.part * kBlockElements;
  // Rules that know rows and columns count from the parameter's first element.
  constexpr bool kIsPart = Formats::kIsFixed && !NeedsFactors<Rule>;
  const uint64_t begin = kIsPart ? 0 : first;
  DeviceParameter parameter = parameter_of(arguments, work);
  if constexpr (kIsPart) parameter = part_from<Rule, Types, Formats>(arguments, parameter, first);
  decltype(auto) scalars = scalars_of<Rule, kOwn>(arguments, work.parameter);
  const StepCount<kOwn> step(arguments, work.parameter);
  constexpr uint32_t kHeld = held_states<Rule, kUsual>();
  const StateAccess<Rule, Formats, kHeld> states{arguments, parameter};
  for_each_run<Rule, Types, kRun>(
      arguments, parameter, begin, begin + kBlockElements,
      [&](Run run, auto& words) { fetch_words(Types::of(arguments.types), states, run, words); },
      [&](Run run, auto& words, auto is_whole) {
        update_run<Rule, Types, Formats, kHeld, kUsual>(arguments, scalars, step, parameter, run,
                                                        words);
      });
}

/// Launches the kernel for one choice of types and formats. kOwn: see fused_step.
template <class Rule, class Types, class Formats, bool kOwn = false>
void launch_case(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  // 16 bytes a lane where every array is narrow, and runs of 8 where lanes share a block; else runs
  // of 4, so that fp32 arrays are read in whole lines by each access.
  constexpr int kRun = Formats::kHasBlocks || (Types::kAreNarrow && Formats::kAreNarrow) ? 8 : 4;
  if constexpr (NeedsNorms<Rule>) {
    enqueue_norms<Rule, Types, Formats, kRun, kOwn>(arguments, stream);
  }
  if constexpr (NeedsFactors<Rule>) enqueue_factors<Rule, kOwn>(arguments, stream);
  const auto launch = [&](auto is_usual) {
    fused_step<Rule, Types, Formats, kRun, is_usual.value, kOwn>
        <<<arguments.table.block_count, kBlockThreads, 0, stream>>>(arguments);
  };
  // Kernels that wait for memory anyway gain nothing from fewer branches; scalars that are formed
  // on the device are not known here.
  if constexpr (!kOwn && HasUsualCase<Rule> && Formats::kIsFixed && Formats::kHasBlocks) {
    const uint32_t others = arguments.table.state_mask & ~Rule::kUsualStates;
    if (others == 0 && Rule::is_usual(arguments.scalars)) {
      launch(std::true_type{});
    } else if constexpr (Types::kIsFixed) {
      launch_case<Rule, AnyTypes, Formats>(arguments, stream);
    } else {
      launch(std::false_type{});
    }
  } else {
    launch(std::false_type{});
  }
  check_cuda(cudaGetLastError(), "StepLauncher", "the launch of the fused step");
}

/// Launches if `Types` and `Formats` are those of the launch; returns whether it did.
template <class Rule, class Types, class Formats, bool kOwn = false>
bool launch_if(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  if (!Types::match(arguments.types)) return false;
  for (int s = 0; s < RuleStates<Rule>::kCount; ++s) {
    const uint32_t held = arguments.table.state_mask & ~RuleStates<Rule>::kVectors;
    const bool exists = ((held >> s) & 1) != 0;
    const bool is_signed = ((RuleStates<Rule>::kSigned >> s) & 1) != 0;
    if (exists && !Formats::match(is_signed, arguments.formats[s].format)) return false;
  }
  launch_case<Rule, Types, Formats, kOwn>(arguments, stream);
  return true;
}

/// State formats that have kernels of their own: of signed states, and of the others.
using Plain = FixedFormats<Format::kF32, Format::kF32>;
using Narrow = FixedFormats<Format::kBF16, Format::kBF16Stochastic>;
using EightBit = FixedFormats<Format::kSym8, Format::kRoot8>;
using FourBit = FixedFormats<Format::kNF4, Format::kRoot4>;
using Mixed = FixedFormats<Format::kSym8, Format::kRoot4>;
using Dynamic = FixedFormats<Format::kDynamic8Signed, Format::kDynamic8Unsigned>;
using Float8 = FixedFormats<Format::kE4M3, Format::kE4M3Root>;

/// Tries the compiled formats for one choice of types.
template <class Rule, class Types>
bool launch_with_types(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  return launch_if<Rule, Types, Plain>(arguments, stream) ||
         launch_if<Rule, Types, Narrow>(arguments, stream) ||
         launch_if<Rule, Types, EightBit>(arguments, stream);
}

/// Launches with scalars and steps from device memory; the formats of the classes by name have
/// kernels of their own.
template <class Rule>
void launch_from_numbers(const StepArguments<Rule>& arguments, cudaStream_t stream) {
  enqueue_numbers(arguments, stream);
  if (launch_if<Rule, AnyTypes, Plain, true>(arguments, stream)) return;
  if (launch_if<Rule, AnyTypes, EightBit, true>(arguments, stream)) return;
  if (launch_if<Rule, AnyTypes, FourBit, true>(arguments, stream)) return;
  if (launch_if<Rule, AnyTypes, Float8, true>(arguments, stream)) return;
  launch_case<Rule, AnyTypes, AnyFormats, true>(arguments, stream);
}

/// The launcher behind launch_<stem>(): the common types and formats have kernels of their own, any
/// other combination runs through one kernel that branches, uniformly, at each load and store.
template <class Rule>
void launch_rule(const LaunchKey& key, const LaunchTable& table, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  uint32_t unit_elements = kTileElements;
  for (const StateFormat& format : key.formats) {
    unit_elements = std::max(unit_elements, static_cast<uint32_t>(format.unit_elements()));
  }
  const StepArguments<Rule> arguments{
      .scalars = key.scalars.as<typename Rule::template Scalars<float>>(),
      .table = table.step,
      .types = {key.gradient_type, key.weight_type, key.master_format},
      .formats = key.formats,
      .step = key.step,
      .unit_elements = unit_elements,
      .own = table.own};
  if (table.own.numbers != nullptr) {
    launch_from_numbers(arguments, stream);
    return;
  }
  using Single = FixedTypes<DType::kF32, DType::kF32, MasterFormat::kWeight>;
  using Split = FixedTypes<DType::kBF16, DType::kBF16, MasterFormat::kSplit>;
  using Stochastic = FixedTypes<DType::kBF16, DType::kBF16, MasterFormat::kStochastic>;
  if (launch_with_types<Rule, Single>(arguments, stream)) return;
  if (launch_with_types<Rule, Split>(arguments, stream)) return;
  using Split8 = FixedTypes<DType::kBF16, DType::kBF16, MasterFormat::kSplit8>;
  if (launch_with_types<Rule, Stochastic>(arguments, stream)) return;
  if (launch_if<Rule, Split8, EightBit>(arguments, stream)) return;
  if (launch_with_types<Rule, AnyTypes>(arguments, stream)) return;
  if (launch_if<Rule, Stochastic, FourBit>(arguments, stream)) return;
  const auto launch_formats = [&]<class Formats>(Formats) {
    return launch_if<Rule, Split, Formats>(arguments, stream) ||
           launch_if<Rule, AnyTypes, Formats>(arguments, stream);
  };
  if (launch_formats(FourBit{}) || launch_formats(Mixed{})) return;
  if (launch_formats(Dynamic{}) || launch_formats(Float8{})) return;
  launch_case<Rule, AnyTypes, AnyFormats>(arguments, stream);
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_FUSED_STEP_CUH_
