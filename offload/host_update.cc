// Stage 2; see host_update.h.
#include "offload/host_update.h"

#include <algorithm>
#include <cstddef>

#include "cpu_kernels/factors.h"
#include "cpu_kernels/gradient_math.h"
#include "cpu_kernels/measure.h"
#include "cpu_kernels/step.h"
#include "offload/stopwatch.h"

namespace outboard {

namespace {

const std::byte* at(const void* array, DType type, size_t element) {
  return static_cast<const std::byte*>(array) + element * bytes_of(type);
}

cpu::ParameterUpdate update_of(const PieceUpdate& piece) {
  const Parameter& parameter = *piece.parameter;
  const ParameterSpec& spec = parameter.spec;
  return {.rule = *spec.rule,
          .scalars = parameter.scalars,
          .elements = spec.elements,
          .rows = spec.rows,
          .gradient = piece.gradient,
          .gradient_type = piece.gradient_type,
          .weight = parameter.host_weight,
          .weight_type = spec.type,
          .master_format = spec.master_format,
          .master = parameter.master,
          .states = parameter.states,
          .formats = spec.formats,
          .random_key = parameter.random_key,
          .step = piece.step};
}

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

void HostUpdate::measure(const std::vector<PieceUpdate>& pieces,
                         const std::vector<Parameter*>& parameters) {
  const Stopwatch watch(times_.updating);
  std::vector<std::pair<Parameter*, cpu::ParameterNorms>> norms;
  std::vector<std::pair<Parameter*, cpu::ParameterFactors>> factors;
  std::vector<size_t> lengths, units;
  for (Parameter* const parameter : parameters) {
    const auto piece = std::ranges::find(pieces, parameter, &PieceUpdate::parameter);
    const cpu::ParameterUpdate update = update_of(*piece);
    if (rule_info(update.rule).factor_scalars != nullptr) {
      units.push_back(factors.emplace_back(parameter, update).second.units());
    } else {
      norms.emplace_back(parameter, update);
      lengths.push_back(parameter->spec.elements);
    }
  }
  arena_.run_many(lengths, kGrainElements,
                  [&](size_t i, size_t first, size_t last) { norms[i].second.run(first, last); });
  arena_.run_many(units, 1,
                  [&](size_t i, size_t first, size_t last) { factors[i].second.run(first, last); });
  for (auto& [parameter, measured] : norms) parameter->scalars = measured.scalars();
  for (auto& [parameter, measured] : factors) parameter->scalars = measured.finish();
}

UpdatedWeight HostUpdate::update(const std::vector<PieceUpdate>& pieces) {
  std::vector<UpdatedWeight::Piece> updated;
  std::vector<cpu::ResolvedUpdate> updates;
  std::vector<size_t> lengths;
  {
    const Stopwatch watch(times_.waiting);
    for (const PieceUpdate& piece : pieces) {
      piece.arrival.wait();
      // Order: the last return of this piece may still be reading the host image; overwriting it
      // now would send a mixture of two steps.
      const EventPtr& returned = piece.parameter->returned[piece.index];
      if (returned != nullptr) returned->synchronize();
      updates.emplace_back(update_of(piece));
      lengths.push_back(piece.last - piece.first);
      updated.push_back({piece.parameter, piece.index, piece.first, piece.last});
    }
  }
  const Stopwatch watch(times_.updating);
  arena_.run_many(lengths, kGrainElements, [&](size_t piece, size_t first, size_t last) {
    updates[piece].run(pieces[piece].first + first, pieces[piece].first + last);
  });
  return UpdatedWeight(std::move(updated));
}

UpdatedWeight HostUpdate::adopt(Parameter& parameter) const {
  return UpdatedWeight({{&parameter, 0, 0, parameter.spec.elements}});
}

}  // namespace outboard
