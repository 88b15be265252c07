// Stage 2; see host_update.h.
#include "offload/host_update.h"

#include <algorithm>
#include <cstddef>

#include "cpu_kernels/gradient_math.h"
#include "cpu_kernels/step.h"
#include "offload/stopwatch.h"

namespace outboard {

namespace {

// Elements that a thread takes at a time: 32 KiB of each fp32 stream, several hundred pieces of
// work per chunk. A multiple of every format's block and of a norm segment.
constexpr size_t kGrainElements = 8192;

const std::byte* at(const void* array, DType type, size_t element) {
  return static_cast<const std::byte*>(array) + element * bytes_of(type);
}

cpu::ParameterUpdate update_of(const PieceUpdate& piece) {
  const Parameter& parameter = *piece.parameter;
  const ParameterSpec& spec = parameter.spec;
  return {.rule = *spec.rule,
          .scalars = piece.scalars,
          .elements = spec.elements,
          .gradient = parameter.gradient(),
          .gradient_type = parameter.gradient_type(),
          .weight = parameter.host_weight,
          .weight_type = spec.type,
          .master_format = spec.master_format,
          .master = parameter.master,
          .states = parameter.states,
          .formats = spec.formats,
          .random_key = parameter.random_key,
          .step = static_cast<uint32_t>(parameter.step)};
}

// A run of grains of one piece, so that one parallel loop covers all pieces of a chunk.
struct Grains {
  cpu::ResolvedUpdate update;
  size_t first_grain;
  size_t first;
  size_t last;
};

}  // namespace

void HostUpdate::accumulate(const GradientInSlot& staged) {
  {
    const Stopwatch watch(times_.waiting);
    staged.gradient.wait();
  }
  const Stopwatch watch(times_.updating);
  Parameter& parameter = *staged.parameter;
  const DType type = parameter.spec.type;
  const bool is_second = parameter.contributions_added == 1;
  float* sum = parameter.accumulator != nullptr ? parameter.accumulator
                                                : static_cast<float*>(parameter.gradient_store);
  arena_.run(staged.last - staged.first, kGrainElements, [&](size_t begin, size_t end) {
    const size_t first = staged.first + begin;
    const size_t count = end - begin;
    if (is_second && parameter.accumulator != nullptr) {
      // The first micro-batch is widened, not added to 0: that keeps its -0.
      cpu::widen(at(parameter.gradient_store, type, first), type, count, sum + first);
    }
    cpu::accumulate(at(staged.slot.data(), type, begin), type, count, sum + first);
    cpu::sum_of_squares(sum + first, DType::kF32, count,
                        parameter.host_sums.data() + first / kNormSegmentElements);
  });
  if (staged.last == parameter.spec.elements) ++parameter.contributions_added;
}

void HostUpdate::sum_of_squares(Parameter& parameter) {
  const Stopwatch watch(times_.updating);
  arena_.run(parameter.spec.elements, kGrainElements, [&](size_t first, size_t last) {
    cpu::sum_of_squares(at(parameter.gradient(), parameter.gradient_type(), first),
                        parameter.gradient_type(), last - first,
                        parameter.host_sums.data() + first / kNormSegmentElements);
  });
}

UpdatedWeight HostUpdate::update(const std::vector<PieceUpdate>& pieces) {
  std::vector<UpdatedWeight::Piece> updated;
  std::vector<Grains> grains;
  size_t grain_count = 0;
  {
    const Stopwatch watch(times_.waiting);
    for (const PieceUpdate& piece : pieces) {
      piece.gradient.wait();
      // Order: the last return of this piece may still be reading the host image; overwriting it
      // now would send a mixture of two steps.
      const EventPtr& returned = piece.parameter->returned[piece.index];
      if (returned != nullptr) returned->synchronize();
      grains.push_back(
          {cpu::ResolvedUpdate(update_of(piece)), grain_count, piece.first, piece.last});
      grain_count += (piece.last - piece.first + kGrainElements - 1) / kGrainElements;
      updated.push_back({piece.parameter, piece.index, piece.first, piece.last});
    }
  }
  const Stopwatch watch(times_.updating);
  arena_.run(grain_count, 1, [&](size_t first_grain, size_t last_grain) {
    auto run = std::prev(std::ranges::upper_bound(grains, first_grain, {}, &Grains::first_grain));
    for (size_t grain = first_grain; grain < last_grain;) {
      const size_t end_grain =
          std::next(run) == grains.end() ? grain_count : std::next(run)->first_grain;
      const size_t stop = std::min(last_grain, end_grain);
      const size_t first = run->first + (grain - run->first_grain) * kGrainElements;
      const size_t last =
          std::min(run->last, run->first + (stop - run->first_grain) * kGrainElements);
      run->update.run(first, last);
      grain = stop;
      ++run;
    }
  });
  return UpdatedWeight(std::move(updated));
}

UpdatedWeight HostUpdate::adopt(Parameter& parameter) const {
  return UpdatedWeight({{&parameter, 0, 0, parameter.spec.elements}});
}

}  // namespace outboard
