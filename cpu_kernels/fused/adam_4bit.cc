// Adam and AdamW with moments in nf4 and root4.
#include "cpu_kernels/fused.h"
#include "cpu_kernels/fused/kernels.h"
#include "cpu_kernels/step.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/fused/adam_4bit.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/fused/adam-inl.h"
#include "cpu_kernels/fused/moments_4bit-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

#if OUTBOARD_HAS_FUSED_KERNELS
using Nf4Root4 = Pair<q::PairOrder, Nf4Moment, Root4Moment>;

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
