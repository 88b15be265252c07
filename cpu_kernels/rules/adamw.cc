// The CPU kernel of AdamW for every SIMD target.
#include "outboard/rules/adamw.h"

#include "cpu_kernels/rule_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_kernels/rules/adamw.cc"
#include "hwy/foreach_target.h"
// Once per target, and so after foreach_target.h:
#include "cpu_kernels/rules/adam_moments-inl.h"
#include "hwy/highway.h"
#include "quant/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace outboard::cpu::HWY_NAMESPACE {

void run_adamw(const RuleScalars& scalars, const RuleTile& tile) {
  run_moments<rules::AdamW>(scalars, tile);
}

}  // namespace outboard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace outboard::cpu {
HWY_EXPORT(run_adamw);

template <>
RuleKernel resolve_kernel<rules::AdamW>() {
  choose_target();
  return OUTBOARD_SIMD_FUNCTION(run_adamw);
}

}  // namespace outboard::cpu
#endif
