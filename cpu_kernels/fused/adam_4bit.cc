// Adam and AdamW with nf4 first and root4 second moments: how adam-inl.h decodes and encodes them.
#include "cpu_kernels/fused.h"
#include "cpu_kernels/fused/kernels.h"
#include "cpu_kernels/step.h"
#include "quant/nf4.h"
#include "quant/root4.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/fused/adam_4bit.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/fused/adam-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"
#include "quant/nf4-inl.h"
#include "quant/paired_codes-inl.h"
#include "quant/root4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if OUTBOARD_HAS_FUSED_KERNELS
static_assert(quant::NF4::kBlockElements == kBlock && quant::Root4::kBlockElements == kBlock);

/// The levels of root4 in units of scale / 256.
constexpr quant::Table16 kSquares = {
    {1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225, 256}};

struct Nf4Root4 {
  using Order = q::PairOrder;
  using Draws = TileDraws;
  static constexpr size_t kCodeBits = 4;
  static constexpr bool kScalesAreRoots = false;

  struct Units {
    alignas(16) float scales[4];
    HWY_INLINE explicit Units(PerBlock values) { hn::Store(values, PerBlockTag(), scales); }
    HWY_INLINE bool is_usual() const { return true; }
  };

  /// The levels of both moments, formed as the formats' decoders do.
  struct Decoder {
    q::VectorLookup16 m_levels;
    q::VectorLookup16 v_levels;
    HWY_INLINE Decoder(float m_scale, float v_scale)
        : m_levels(q::VectorLookup16(quant::NF4::levels()).map([m_scale](FloatVec level) {
            return hn::MulAdd(level, broadcast(m_scale), hn::Zero(FloatTag()));
          })),
          v_levels(q::VectorLookup16(kSquares).map([v_scale](FloatVec square) {
            return hn::Mul(square, broadcast(quant::Root4::Decoder(v_scale).unit));
          })) {}
    HWY_INLINE Decoder(const Units& units, size_t b)
        : Decoder(units.scales[kOfM + b], units.scales[kOfV + b]) {}
    HWY_INLINE FloatGroup m(const uint8_t* codes) const {
      return q::look_up_nibbles(codes, m_levels);
    }
    HWY_INLINE FloatGroup v(const uint8_t* codes) const {
      return q::look_up_nibbles(codes, v_levels);
    }
  };

  /// Factors are 0 for blocks of zeros, whose codes are those of 0 then.
  struct Scales {
    alignas(16) float at[4];
    float factor[4];
    HWY_INLINE bool set(PerBlock largest) {
      hn::Store(largest, PerBlockTag(), at);
      bool is_usual = true;
      for (size_t b = 0; b < kBlocks; ++b) {
        const float m = at[kOfM + b] = quant::NF4::scale(at[kOfM + b]);
        const float v = at[kOfV + b] = quant::Root4::scale(at[kOfV + b]);
        factor[kOfM + b] = m > 0.0f ? 1.0f / m : 0.0f;
        factor[kOfV + b] = v > 0.0f ? quant::Root4Position(v).factor : 0.0f;
        is_usual = is_usual && m >= 0.0f && v >= 0.0f;
      }
      return is_usual;
    }
  };

  /// Positions need no minimum: fl(r fl(16 / r)) is at most 16 (1 + 2^-24), which rounds to 16.
  struct Encoder {
    q::NF4Finder find_m;
    FloatVec root_factor;
    HWY_INLINE Encoder(const Scales& scales, size_t b)
        : find_m(scales.factor[kOfM + b]), root_factor(broadcast(scales.factor[kOfV + b])) {}
    /// The codes of a group under way.
    struct Codes {
      q::BitsGroup m;
      q::BitsGroup v;
      q::BitsGroup draws;
    };
    HWY_INLINE Codes begin(const Draws& draws, size_t i) const {
      Codes codes;
      codes.draws = draws.at<Order>(i);
      return codes;
    }
    template <size_t k>
    HWY_INLINE void find_codes(FloatVec m, FloatVec root, Codes& codes) const {
      codes.m.at[k] = find_m(m);
      codes.v.at[k] = q::root4_code(hn::Mul(root, root_factor), codes.draws.at[k]);
    }
    HWY_INLINE void store(const Codes& codes, uint8_t* m_codes, uint8_t* v_codes) const {
      q::store_nibbles(codes.m, codes.v, m_codes, v_codes);
    }
  };
};

size_t run_adam_4bit(const ParameterUpdate& update, size_t first, size_t last) {
  return run_adam_of_any_weights<Nf4Root4, Nf4Root4>(update, first, last);
}
#else
size_t run_adam_4bit(const ParameterUpdate&, size_t first, size_t) { return first; }
#endif

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {

HWY_EXPORT(run_adam_4bit);

FusedKernel fused_adam_4bit() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_adam_4bit);
}

}  // namespace outboard::cpu
#endif
