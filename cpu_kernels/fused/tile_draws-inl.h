// Random numbers of a tile for the fused kernels: 16 bits for each element, as RandomTile draws
// them, but made in parts, which callers put where the divider keeps them waiting.
#include "cpu_kernels/exact-inl.h"
#include "cpu_kernels/step.h"
#include "hwy/highway.h"
#include "quant/packed_codes-inl.h"
#include "quant/random-inl.h"

#if defined(OUTBOARD_CPU_KERNELS_FUSED_TILE_DRAWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_CPU_KERNELS_FUSED_TILE_DRAWS_INL_H_
#undef OUTBOARD_CPU_KERNELS_FUSED_TILE_DRAWS_INL_H_
#else
#define OUTBOARD_CPU_KERNELS_FUSED_TILE_DRAWS_INL_H_
#endif

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {
namespace q = quant::HWY_NAMESPACE;
using q::kGroup;
using q::kLanes;

/// The numbers of one stream, for what is rounded stochastically.
class TileDraws {
 public:
  using Group = q::BitsGroup;

  HWY_INLINE TileDraws(const ParameterUpdate& update, uint32_t stream)
      : schedule_(RandomContext{.key = update.random_key, .step = update.step, .stream = stream}) {}

  /// The numbers of the groups at i and i + kGroup of the tile at `first`, made in eight parts.
  class TwoGroups {
   public:
    HWY_INLINE TwoGroups(TileDraws& draws, size_t first, size_t i)
        : schedule_(draws.schedule_),
          out_(draws.words_ + i / 4),
          a_((first + i) / 8, schedule_),
          b_((first + i + kGroup) / 8, schedule_) {}
    template <size_t kPart>
    HWY_INLINE void run_part() {
      constexpr size_t kRounds = q::kPhiloxRounds - 1;
      constexpr size_t kFrom = 1 + kPart * kRounds / 8;
      constexpr size_t kTo = 1 + (kPart + 1) * kRounds / 8;
      a_.template run_rounds<kFrom, kTo>(schedule_);
      b_.template run_rounds<kFrom, kTo>(schedule_);
      if constexpr (kPart == 7) {
        a_.store(out_);
        b_.store(out_ + kGroup / 4);
      }
    }

   private:
    const q::PhiloxSchedule& schedule_;
    uint64_t* out_;
    q::PhiloxBlocks a_;
    q::PhiloxBlocks b_;
  };

  /// Those of the group at i, in its order.
  template <class Order>
  [[nodiscard]] HWY_INLINE Group at(size_t i) const {
    const q::PackedWordTag d;
    const auto* numbers = reinterpret_cast<const uint16_t*>(words_) + i;
    const auto [a, b] = Order::widen_low(hn::LoadU(d, numbers));
    const auto [c, e] = Order::widen_low(hn::LoadU(d, numbers + 2 * kLanes));
    return {{a, b, c, e}};
  }

 private:
  alignas(64) uint64_t words_[kTileElements / 4];
  q::PhiloxSchedule schedule_;
};

/// In its place where nothing is random.
struct NoDraws {
  struct Group {};
  HWY_INLINE NoDraws(const ParameterUpdate&, uint32_t) {}
  struct TwoGroups {
    HWY_INLINE TwoGroups(NoDraws&, size_t, size_t) {}
    template <size_t kPart>
    HWY_INLINE void run_part() {}
  };
  template <class Order>
  [[nodiscard]] HWY_INLINE Group at(size_t) const {
    return {};
  }
};

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
