// Adam and AdamW with moments in sym8 and root8.
#include "cpu_kernels/fused.h"
#include "cpu_kernels/fused/kernels.h"
#include "cpu_kernels/step.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/fused/adam_8bit.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/fused/adam-inl.h"
#include "cpu_kernels/fused/moments_8bit-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if OUTBOARD_HAS_FUSED_KERNELS
template <class Order>
using Sym8Root8 = Pair<Order, Sym8Moment, Root8Moment>;

size_t run_adam_8bit(const ParameterUpdate& update, size_t first, size_t last) {
  return run_adam_of_any_weights<Sym8Root8<q::MemoryOrder>, Sym8Root8<q::PackOrder>>(update, first,
                                                                                     last);
}
#else
size_t run_adam_8bit(const ParameterUpdate&, size_t first, size_t) { return first; }
#endif

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {

HWY_EXPORT(run_adam_8bit);

FusedKernel fused_adam_8bit() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_adam_8bit);
}

}  // namespace outboard::cpu
#endif
