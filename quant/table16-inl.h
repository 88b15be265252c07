// The SIMD version of table16.h, one per target.
#include "hwy/highway.h"
#include "quant/rounding-inl.h"
#include "quant/table16.h"

#if defined(OUTBOARD_QUANT_TABLE16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OUTBOARD_QUANT_TABLE16_INL_H_
#undef OUTBOARD_QUANT_TABLE16_INL_H_
#else
#define OUTBOARD_QUANT_TABLE16_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace outboard::quant::HWY_NAMESPACE {

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
/// One level down a search tree.
HWY_INLINE BitsVec descend(BitsVec node, FloatVec value, FloatVec threshold) {
  const SignedTag ds;
  const auto is_reached = hn::RebindMask(ds, hn::Ge(value, threshold));
  const auto left = hn::BitCast(ds, hn::Add(node, node));
  return hn::BitCast(BitsTag(), hn::Sub(left, hn::VecFromMask(ds, is_reached)));
}

/// An index for a look-up that reads only the low bits. The instructions do so, but the library
/// checks the rest in debug builds.
HWY_INLINE BitsVec low_bits(BitsVec index, uint32_t mask) {
  return HWY_IS_DEBUG_BUILD ? hn::And(index, hn::Set(BitsTag(), mask)) : index;
}

/// What one register of table entries holds at `index`, which must be a lane of it.
HWY_INLINE FloatVec entries_at(FloatVec table, BitsVec index) {
  return hn::TableLookupLanes(table, hn::IndicesFromVec(FloatTag(), index));
}
#endif

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
/// A table of 16 entries in one register.
class VectorLookup16 {
 public:
  HWY_INLINE explicit VectorLookup16(const Table16& table)
      : table_(hn::LoadU(FloatTag(), table.at)) {}
  /// The entries at `index`, below 16.
  HWY_INLINE FloatVec operator()(BitsVec index) const { return entries_at(table_, index); }
  /// The entries at the lowest 4 bits of `index`.
  HWY_INLINE FloatVec at_low_bits(BitsVec index) const {
    return entries_at(table_, low_bits(index, 15));
  }
  /// The table of function(entry).
  template <class Function>
  HWY_INLINE VectorLookup16 map(const Function& function) const {
    VectorLookup16 result = *this;
    result.table_ = function(table_);
    return result;
  }
  /// As quant::count_thresholds; the table is a search tree.
  HWY_INLINE BitsVec count_thresholds(FloatVec value) const {
    BitsVec node = hn::Set(BitsTag(), 1);
    for (int level = 0; level < 4; ++level) node = descend(node, value, (*this)(node));
    return hn::Sub(node, hn::Set(BitsTag(), 16));
  }

 private:
  FloatVec table_;
};
#elif HWY_TARGET == HWY_AVX2
/// The same in two registers.
class VectorLookup16 {
 public:
  HWY_INLINE explicit VectorLookup16(const Table16& table)
      : low_(hn::LoadU(FloatTag(), table.at)), high_(hn::LoadU(FloatTag(), table.at + 8)) {}
  HWY_INLINE FloatVec operator()(BitsVec index) const { return at_low_bits(index); }
  HWY_INLINE FloatVec at_low_bits(BitsVec index) const {
    const BitsVec lane = low_bits(index, 7);
    const auto is_high = hn::MaskFromVec(hn::BitCast(FloatTag(), hn::ShiftLeft<28>(index)));
    return hn::IfThenElse(is_high, entries_at(high_, lane), entries_at(low_, lane));
  }
  template <class Function>
  HWY_INLINE VectorLookup16 map(const Function& function) const {
    VectorLookup16 result = *this;
    result.low_ = function(low_);
    result.high_ = function(high_);
    return result;
  }
  HWY_INLINE BitsVec count_thresholds(FloatVec value) const {
    BitsVec node = hn::Set(BitsTag(), 1);
    for (int level = 0; level < 3; ++level) node = descend(node, value, entries_at(low_, node));
    const BitsVec lane = hn::Sub(node, hn::Set(BitsTag(), 8));  // the last level has 8 nodes
    return descend(lane, value, entries_at(high_, lane));
  }

 private:
  FloatVec low_;
  FloatVec high_;
};
#else
/// The same from memory, for vectors that are too short or of unknown length.
class VectorLookup16 {
 public:
  HWY_INLINE explicit VectorLookup16(const Table16& table) : table_(table) {}
  HWY_INLINE FloatVec operator()(BitsVec index) const {
    HWY_ALIGN uint32_t indices[64];
    HWY_ALIGN float entries[64];
    hn::Store(index, BitsTag(), indices);
    for (size_t i = 0; i < hn::Lanes(BitsTag()); ++i) entries[i] = table_.at[indices[i] % 16];
    return hn::Load(FloatTag(), entries);
  }
  HWY_INLINE FloatVec at_low_bits(BitsVec index) const { return (*this)(index); }
  template <class Function>
  HWY_INLINE VectorLookup16 map(const Function& function) const {
    const hn::CappedTag<float, 16> d;
    VectorLookup16 result = *this;
    for (size_t i = 0; i < 16; i += hn::Lanes(d)) {
      hn::StoreU(function(hn::LoadU(d, table_.at + i)), d, result.table_.at + i);
    }
    return result;
  }
  HWY_INLINE BitsVec count_thresholds(FloatVec value) const {
    const SignedTag ds;
    auto count = hn::Zero(ds);
    for (int i = 1; i < 16; ++i) {  // the tree holds every threshold once
      const auto is_reached = hn::Ge(value, hn::Set(FloatTag(), table_.at[i]));
      count = hn::Sub(count, hn::VecFromMask(ds, hn::RebindMask(ds, is_reached)));
    }
    return hn::BitCast(BitsTag(), count);
  }

 private:
  Table16 table_;
};
#endif

}  // namespace outboard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
