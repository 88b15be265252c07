// Adam and AdamW with a split bf16 weight, bf16 gradient, sym8 first and root8 second moment, a
// tile at a time. The formulas are those of adam_moments-inl.h and companding-inl.h; what is here
// is their order. It takes half the time of the passes in cache, because four vectors are widened
// and narrowed together (packed_codes-inl.h), the encoder takes the root that the update needs
// anyway, encoding runs while the divider is busy with the weights, and what only special numbers
// need is left out: a tile in which one appears is left to the general passes.
#include "cpu_kernels/fused.h"
#include "cpu_kernels/step.h"
#include "outboard/rules/adam_moments.h"
#include "quant/root8.h"
#include "quant/sym8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/fused/adam_8bit.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/rules/adam_moments-inl.h"
#include "hwy/highway.h"
#include "quant/companding-inl.h"
#include "quant/dispatch.h"
#include "quant/packed_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if HWY_NATIVE_FMA && !HWY_HAVE_SCALABLE && HWY_TARGET != HWY_SCALAR
namespace q = quant::HWY_NAMESPACE;
using q::BitsTag;
using q::BitsVec;
using q::FloatGroup;
using q::kGroup;
using q::kLanes;

constexpr size_t kBlock = quant::Sym8::kBlockElements;
constexpr size_t kBlocks = kTileElements / kBlock;
static_assert(quant::Root8::kBlockElements == kBlock && kBlock % kGroup == 0);

/// Scales from which every level is a normal number, times 2^16 too.
constexpr float kLeastUsualScale = 0x1p-80f;

/// The root of the least normal number: what is below belongs to a second moment that is flushed.
constexpr float kLeastRoot = 0x1p-63f;

/// The moments of a tile between decode and encode, in groups of pack order; for each of its blocks
/// the scales and what the encoders multiply with.
struct alignas(64) Moments {
  float m[kTileElements];
  float root[kTileElements];
  float m_scale[kBlocks];
  float root_scale[kBlocks];
  float m_factor[kBlocks];
  float root_factor[kBlocks];
};

/// A block's largest magnitudes, as bits.
struct Largest {
  BitsVec m;
  BitsVec root;
};

/// The parameter's arrays from one tile on.
struct Arrays {
  const uint16_t* gradient;
  uint16_t* weight;
  uint16_t* low;
  uint8_t* m;
  uint8_t* v;
  float* m_scales;
  float* v_scales;

  Arrays(const ParameterUpdate& update, size_t first)
      : gradient(static_cast<const uint16_t*>(update.gradient) + first),
        weight(static_cast<uint16_t*>(update.weight) + first),
        low(static_cast<uint16_t*>(update.master) + first),
        m(static_cast<uint8_t*>(update.states[0].codes) + first),
        v(static_cast<uint8_t*>(update.states[1].codes) + first),
        m_scales(update.states[0].scales + first / kBlock),
        v_scales(update.states[1].scales + first / kBlock) {}
};

/// Codes of sym8 as c |c| 2^16 unit / 2^16: the product of 16-bit numbers is exact, and so is 2^16.
HWY_INLINE FloatGroup decode_sym8(const uint8_t* codes, float unit) {
  const q::PackedByteTag d8;
  const q::PackedWordTag d16;
  const hn::RebindToSigned<q::PackedWordTag> ds16;
  const auto zero = hn::Zero(d8);
  const auto bytes = q::load_bytes(codes);
  const FloatVec factor = broadcast(unit * 0x1p-16f);
  FloatGroup group;
  const auto widen = [&](auto words, size_t k) {
    const auto c = hn::BitCast(ds16, words);
    const auto square = hn::BitCast(d16, hn::MulHigh(c, hn::Abs(c)));
    const auto none = hn::Zero(d16);
    const auto value = [&](BitsVec level) {
      return hn::Mul(hn::ConvertTo(FloatTag(), hn::BitCast(q::SignedTag(), level)), factor);
    };
    group.at[2 * k] = value(q::widen_first(none, square));
    group.at[2 * k + 1] = value(q::widen_second(none, square));
  };
  widen(hn::InterleaveLower(d8, zero, bytes), 0);
  widen(hn::InterleaveUpper(d8, zero, bytes), 1);
  return group;
}

/// Codes of root8. 2^23 + c^2 needs no conversion, and (2^23 + c^2) unit - 2^23 unit is rounded
/// once.
HWY_INLINE FloatGroup decode_root8(const uint8_t* codes, float unit) {
  const q::PackedByteTag d8;
  const q::PackedWordTag d16;
  const auto zero = hn::Zero(d8);
  const auto bytes = q::load_bytes(codes);
  const FloatVec factor = broadcast(unit);
  const FloatVec offset = broadcast(-0x1p23f * unit);
  FloatGroup group;
  const auto widen = [&](auto words, size_t k) {
    const auto c = hn::BitCast(d16, words);
    const auto square = hn::Mul(c, c);
    const auto exponent = hn::Set(d16, 0x4B00);
    const auto value = [&](BitsVec level) {
      const FloatVec root = hn::MulAdd(hn::BitCast(FloatTag(), level), factor, offset);
      return hn::Mul(root, root);
    };
    group.at[2 * k] = value(q::widen_first(square, exponent));
    group.at[2 * k + 1] = value(q::widen_second(square, exponent));
  };
  widen(hn::InterleaveLower(d8, bytes, zero), 0);
  widen(hn::InterleaveUpper(d8, bytes, zero), 1);
  return group;
}

/// Decodes the moments of the group at `i`, updates them and takes the root.
template <bool kHasL2>
HWY_INLINE void update_moments(const rules::AdamScalars<float>& s, const Arrays& arrays, size_t i,
                               float m_unit, float v_unit, Moments& moments, Largest& largest) {
  const FloatGroup gradient = q::load_bf16_group(arrays.gradient + i);
  const FloatGroup old_m = decode_sym8(arrays.m + i, m_unit);
  const FloatGroup old_v = decode_root8(arrays.v + i, v_unit);
  FloatGroup weight = gradient;
  if constexpr (kHasL2) weight = q::load_joined_group(arrays.weight + i, arrays.low + i);
  for (size_t k = 0; k < 4; ++k) {
    const FloatVec g = adam_gradient<kHasL2>(s, gradient.at[k], weight.at[k]);
    const FloatVec v = ema_of_squares(old_v.at[k], g, s.beta2, s.one_minus_beta2);
    const FloatVec root = hn::Sqrt(v);
    const FloatVec m = lerp_by_less_than_half(old_m.at[k], g, s.one_minus_beta1);
    largest.m = hn::Max(largest.m, hn::BitCast(BitsTag(), hn::Abs(m)));
    largest.root = hn::Max(largest.root, hn::BitCast(BitsTag(), root));
    hn::Store(m, FloatTag(), moments.m + i + k * kLanes);
    hn::Store(root, FloatTag(), moments.root + i + k * kLanes);
  }
}

/// Updates and rounds the weights of the group at `i`; a NaN among them makes `sum` NaN and is
/// stored with the bits that it happens to have.
HWY_INLINE void update_weights(const rules::AdamScalars<float>& s, const Arrays& arrays, size_t i,
                               const Moments& moments, FloatVec& sum) {
  FloatGroup weight = q::load_joined_group(arrays.weight + i, arrays.low + i);
  for (size_t k = 0; k < 4; ++k) {
    const FloatVec m = hn::Load(FloatTag(), moments.m + i + k * kLanes);
    const FloatVec root = hn::Load(FloatTag(), moments.root + i + k * kLanes);
    weight.at[k] = adam_weight<true>(s, weight.at[k], m, root);
  }
  for (size_t k = 0; k < 4; k += 2) {
    sum = hn::MulAdd(weight.at[k], weight.at[k + 1], sum);
    q::store_split_pair(weight.at[k], weight.at[k + 1], arrays.weight + i + k * kLanes,
                        arrays.low + i + k * kLanes);
  }
}

/// Gives a tile's NaN weights the bits that quant::split_f32 gives them; halves are lossless.
HWY_INLINE void canonicalise_weights(const Arrays& arrays) {
  for (size_t i = 0; i < kTileElements; i += kLanes) {
    const auto* low = reinterpret_cast<const int16_t*>(arrays.low + i);
    const BitsVec bits = q::splittable_bits(q::load_joined(arrays.weight + i, low));
    q::store_halfwords(q::split_high(bits), arrays.weight + i);
    q::store_halfwords(bits, arrays.low + i);
  }
}

/// Encodes the moments of the group at `i`.
HWY_INLINE void encode_moments(const Moments& moments, size_t i, const q::SquareFinder& find_m,
                               const q::SquareFinder& find_root, const Arrays& arrays) {
  BitsVec m[4];
  BitsVec v[4];
  for (size_t k = 0; k < 4; ++k) {
    m[k] = q::sym8_code(find_m, hn::Load(FloatTag(), moments.m + i + k * kLanes));
    const FloatVec root = hn::Load(FloatTag(), moments.root + i + k * kLanes);
    v[k] = q::root8_code(find_root, root, hn::Ge(root, broadcast(kLeastRoot)));
  }
  q::store_bytes(q::narrow_to_bytes(m[0], m[1], m[2], m[3]), arrays.m + i);
  q::store_bytes(q::narrow_to_bytes(v[0], v[1], v[2], v[3]), arrays.v + i);
}

/// What the encoder multiplies with; 0 for a block of zeros, whose codes are 0 then.
HWY_INLINE float factor_of(float levels, float scale) {
  return scale > 0.0f ? levels / scale : 0.0f;
}

/// Sets what belongs to block `b`. False if there is something special.
HWY_INLINE bool set_scales(const Largest& largest, size_t b, Moments& moments) {
  const float m = exact::from_bits(hn::GetLane(hn::MaxOfLanes(BitsTag(), largest.m)));
  const float root = exact::from_bits(hn::GetLane(hn::MaxOfLanes(BitsTag(), largest.root)));
  moments.m_scale[b] = quant::Sym8::scale(m);
  moments.root_scale[b] = root < kLeastRoot ? 0.0f : quant::plain_scale(root);
  moments.m_factor[b] = factor_of(quant::Sym8::kLevels, moments.m_scale[b]);
  moments.root_factor[b] = factor_of(quant::Root8::kLevels, moments.root_scale[b]);
  return moments.m_scale[b] >= 0.0f && moments.root_scale[b] >= 0.0f;
}

/// The first half of a tile's update, which stores nothing. False if there is something special.
template <bool kHasL2>
HWY_INLINE bool update_moments(const rules::AdamScalars<float>& s, const Arrays& arrays,
                               Moments& moments) {
  float m_unit[kBlocks];
  float root_unit[kBlocks];
  Largest largest[kBlocks];
  bool is_usual = true;
  for (size_t b = 0; b < kBlocks; ++b) {
    const float m_scale = arrays.m_scales[b];
    m_unit[b] = quant::Sym8::Decoder(m_scale).unit;
    root_unit[b] = quant::Root8::Decoder(arrays.v_scales[b]).unit;
    is_usual = is_usual && (m_scale == 0.0f || m_scale >= kLeastUsualScale);
  }
  for (size_t b = 0; b < kBlocks; ++b) {
    Largest block = {hn::Zero(BitsTag()), hn::Zero(BitsTag())};
    for (size_t i = b * kBlock; i < (b + 1) * kBlock; i += kGroup) {
      update_moments<kHasL2>(s, arrays, i, m_unit[b], root_unit[b], moments, block);
    }
    largest[b] = block;
  }
  for (size_t b = 0; b < kBlocks; ++b) is_usual = set_scales(largest[b], b, moments) && is_usual;
  return is_usual;
}

/// The second half: weights, codes and scales. Weights wait for the divider, codes do not, so they
/// take turns; that is worth 3 %.
HWY_INLINE void store_update(const rules::AdamScalars<float>& s, const Arrays& arrays,
                             const Moments& moments) {
  FloatVec sum = hn::Zero(FloatTag());
  for (size_t b = 0; b < kBlocks; ++b) {
    const q::SquareFinder find_m(moments.m_factor[b]);
    const q::SquareFinder find_root(moments.root_factor[b]);
    for (size_t i = b * kBlock; i < (b + 1) * kBlock; i += kGroup) {
      update_weights(s, arrays, i, moments, sum);
      encode_moments(moments, i, find_m, find_root, arrays);
    }
    arrays.m_scales[b] = moments.m_scale[b];
    arrays.v_scales[b] = moments.root_scale[b];
  }
  if (!hn::AllTrue(FloatTag(), hn::Eq(sum, sum))) canonicalise_weights(arrays);
}

template <bool kHasL2>
size_t update_tiles(const ParameterUpdate& update, size_t first, size_t last) {
  const auto s = update.scalars.as<rules::AdamScalars<float>>();
  Moments moments;
  for (size_t i = first; i < last; i += kTileElements) {
    const Arrays arrays(update, i);
    if (!update_moments<kHasL2>(s, arrays, moments)) return i;
    store_update(s, arrays, moments);
  }
  return last;
}

size_t run_adam_8bit(const ParameterUpdate& update, size_t first, size_t last) {
  const bool has_l2 = update.scalars.as<rules::AdamScalars<float>>().l2 != 0.0f;
  return has_l2 ? update_tiles<true>(update, first, last)
                : update_tiles<false>(update, first, last);
}
#else
size_t run_adam_8bit(const ParameterUpdate&, size_t first, size_t) { return first; }
#endif

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
namespace {

bool is_adam(const ParameterUpdate& update) {
  if (update.rule != RuleId::kAdam && update.rule != RuleId::kAdamW) return false;
  const auto s = update.scalars.as<rules::AdamScalars<float>>();
  return s.amsgrad == 0 && s.one_minus_beta1 < 0.5f;
}

}  // namespace

HWY_EXPORT(run_adam_8bit);

FusedKernel fused_kernel(const ParameterUpdate& update) {
  const bool is_8bit = update.formats[0] == state_format(Format::kSym8) &&
                       update.formats[1] == state_format(Format::kRoot8);
  const bool is_split =
      update.master_format == MasterFormat::kSplit && update.gradient_type == DType::kBF16;
  if (!is_adam(update) || !is_8bit || !is_split) return nullptr;
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_adam_8bit);
}

}  // namespace outboard::cpu
#endif
