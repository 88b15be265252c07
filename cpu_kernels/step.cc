// The update of a run of one parameter: which arrays the rule may touch where they lie, which go
// through scratch tiles, and how the last, partial tile is kept away from what is not the caller's.
// No arithmetic on elements lives here.
#include "cpu_kernels/step.h"

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstring>

#include "cpu_kernels/factors.h"
#include "outboard/error.h"

namespace outboard::cpu {
namespace {

/// The longest block of any format, and so the longest run between decode and encode.
constexpr size_t kMostUnitElements = 2048;

/// Between the scratch arrays, so that their tiles fall into different cache sets.
constexpr size_t kStaggerElements = kTileElements + 16;

const std::byte* at(const void* base, size_t bytes) {
  return base == nullptr ? nullptr : static_cast<const std::byte*>(base) + bytes;
}

std::byte* at(void* base, size_t bytes) {
  return base == nullptr ? nullptr : static_cast<std::byte*>(base) + bytes;
}

}  // namespace

/// A run of `count` elements from `first`; `gradient`, `weight` and `master` point at its first
/// element and hold whole tiles. `may_alias_state`: plain fp32 states hold them too and may be
/// updated where they lie.
struct ResolvedUpdate::Run {
  size_t first;
  size_t count;
  const void* gradient;
  void* weight;
  void* master;
  bool may_alias_state;
};

struct ResolvedUpdate::Scratch {
  struct Values {
    float value[kMostUnitElements + kStaggerElements];
  };
  alignas(64) Values gradient;
  Values weight;
  Values state[kMaxStates];
  Values moments;
};

/// Copies padded with zeros that stand in for the caller's arrays, which end inside the tile.
struct ResolvedUpdate::Tail {
  alignas(64) std::byte gradient[kMostUnitElements * sizeof(float)] = {};
  alignas(64) std::byte weight[kMostUnitElements * sizeof(float)] = {};
  alignas(64) std::byte master[kMostUnitElements * sizeof(float)] = {};
};

ResolvedUpdate::ResolvedUpdate(const ParameterUpdate& update)
    : update_(update),
      transfer_(resolve_transfer(update.gradient_type, update.weight_type, update.master_format)),
      rule_(rule_kernel(update.rule)),
      fused_(fused_kernel(update)) {
  is_in_place_ = transfer_.load_gradient == nullptr && transfer_.load_weight == nullptr &&
                 transfer_.store_weight == nullptr;
  if (rule_info(update.rule).factor_scalars != nullptr) take_factors();
  for (size_t k = 0; k < kMaxStates; ++k) {
    if (update_.states[k].codes == nullptr) continue;
    codecs_[k] = codec(update.formats[k].format);
    is_in_place_ = is_in_place_ && codecs_[k].is_plain_f32;
    unit_elements_ = std::max(unit_elements_, update.formats[k].unit_elements());
  }
  if (unit_elements_ > kMostUnitElements) {
    fail(ErrorKind::kValue, "ResolvedUpdate", "a state format has blocks of ", unit_elements_,
         " elements; at most ", kMostUnitElements, " are supported");
  }
}

/// What this pass only reads is no state to it any more.
void ResolvedUpdate::take_factors() {
  const RuleInfo& rule = rule_info(update_.rule);
  factors_ = rule.factor_scalars(update_.scalars);
  for (size_t k = 0; k < rule.states.size(); ++k) {
    if (rule.states[k].shape == StateShape::kElements) continue;
    const bool is_row = rule.states[k].shape == StateShape::kRows;
    (is_row ? rows_ : columns_) = {static_cast<const float*>(update_.states[k].codes),
                                   state_elements(rule.states[k], update_.elements, update_.rows)};
    if (is_row) joined_ = k;
    update_.states[k] = {};
  }
  is_in_place_ = false;
}

RandomContext ResolvedUpdate::random(uint32_t stream) const {
  return {.key = update_.random_key, .step = update_.step, .stream = stream};
}

ResolvedUpdate::Run ResolvedUpdate::run_at(size_t first, size_t count) const {
  return {.first = first,
          .count = count,
          .gradient = at(update_.gradient, first * bytes_of(update_.gradient_type)),
          .weight = at(update_.weight, first * bytes_of(update_.weight_type)),
          .master = at(update_.master, first * bytes_of(update_.master_format)),
          .may_alias_state = true};
}

void ResolvedUpdate::run(size_t first, size_t last) const {
  assert(first % unit_elements_ == 0 && last <= update_.elements);
  assert(last % unit_elements_ == 0 || last == update_.elements);
  const size_t whole = last / unit_elements_ * unit_elements_;
  Scratch scratch;  // not initialised: a tile is written before it is read
  const size_t stride = is_in_place_ ? std::max(whole, first + 1) - first : unit_elements_;
  for (size_t i = first; i < whole; i += stride) {
    if (fused_ != nullptr) i = fused_(update_, i, whole);
    if (i < whole) update_run(run_at(i, stride), scratch);
  }
  if (whole < last) update_tail(whole, scratch);
}

void ResolvedUpdate::inspect(size_t first, size_t last, const Look& look) const {
  assert(first % unit_elements_ == 0 && last <= update_.elements);
  const size_t whole = last / unit_elements_ * unit_elements_;
  Scratch scratch;  // not initialised: a tile is written before it is read
  const size_t stride = is_in_place_ ? std::max(whole, first + 1) - first : unit_elements_;
  for (size_t i = first; i < whole; i += stride) look(load(run_at(i, stride), scratch), i, stride);
  if (whole == last) return;
  Tail tail;
  look(load(copy_tail(whole, tail), scratch), whole, last - whole);
}

RuleTile ResolvedUpdate::load(const Run& run, Scratch& scratch) const {
  const size_t tile_elements = round_up(run.count, kTileElements);
  RuleTile tile = {};
  tile.elements = tile_elements;
  tile.gradient = static_cast<const float*>(run.gradient);
  if (transfer_.load_gradient != nullptr) {
    transfer_.load_gradient(run.gradient, tile_elements, scratch.gradient.value);
    tile.gradient = scratch.gradient.value;
  }
  tile.weight = static_cast<float*>(run.master != nullptr ? run.master : run.weight);
  if (transfer_.load_weight != nullptr) {
    transfer_.load_weight(run.weight, run.master, tile_elements, scratch.weight.value);
    tile.weight = scratch.weight.value;
  }
  for (size_t k = 0; k < kMaxStates; ++k) {
    const StateArray& state = update_.states[k];
    if (state.codes == nullptr) continue;
    if (codecs_[k].is_plain_f32 && run.may_alias_state) {
      tile.state[k] = static_cast<float*>(state.codes) + run.first;
      continue;
    }
    const size_t count = round_up(run.count, update_.formats[k].unit_elements());
    codecs_[k].decode(state, run.first, count, scratch.state[k].value);
    tile.state[k] = scratch.state[k].value;
  }
  if (!columns_.empty()) {
    float* const moments = scratch.moments.value;
    join_factors(factors_, rows_, columns_, run.first, run.count, moments);
    std::fill(moments + run.count, moments + tile_elements, 0.0f);
    tile.state[joined_] = moments;
  }
  return tile;
}

void ResolvedUpdate::update_run(const Run& run, Scratch& scratch) const {
  const RuleTile tile = load(run, scratch);
  rule_(update_.scalars, tile);

  for (size_t k = 0; k < kMaxStates; ++k) {
    if (tile.state[k] != scratch.state[k].value) continue;
    const size_t count = round_up(run.count, update_.formats[k].unit_elements());
    codecs_[k].encode(tile.state[k], run.first, count, update_.elements,
                      random(static_cast<uint32_t>(k + 1)), 0, update_.states[k]);
  }
  if (transfer_.store_weight != nullptr) {
    transfer_.store_weight(tile.weight, tile.elements, random(0), run.first, run.weight,
                           run.master);
  }
}

ResolvedUpdate::Run ResolvedUpdate::copy_tail(size_t first, Tail& tail) const {
  const size_t count = update_.elements - first;
  const Run user = run_at(first, count);
  std::memcpy(tail.gradient, user.gradient, count * bytes_of(update_.gradient_type));
  std::memcpy(tail.weight, user.weight, count * bytes_of(update_.weight_type));
  if (user.master != nullptr) {
    std::memcpy(tail.master, user.master, count * bytes_of(update_.master_format));
  }
  return {.first = first,
          .count = count,
          .gradient = tail.gradient,
          .weight = tail.weight,
          .master = user.master == nullptr ? nullptr : tail.master,
          .may_alias_state = false};
}

void ResolvedUpdate::update_tail(size_t first, Scratch& scratch) const {
  Tail tail;
  const Run copy = copy_tail(first, tail);
  update_run(copy, scratch);
  const Run user = run_at(first, copy.count);
  std::memcpy(user.weight, tail.weight, copy.count * bytes_of(update_.weight_type));
  if (user.master != nullptr) {
    std::memcpy(user.master, tail.master, copy.count * bytes_of(update_.master_format));
  }
}

}  // namespace outboard::cpu
