// Which fused kernel serves an update. No arithmetic on elements lives here.
#include "cpu_kernels/fused.h"

#include "cpu_kernels/fused/kernels.h"
#include "cpu_kernels/step.h"
#include "outboard/rules/adam_moments.h"

namespace outboard::cpu {
namespace {

bool is_adam(const ParameterUpdate& update) {
  if (update.rule != RuleId::kAdam && update.rule != RuleId::kAdamW) return false;
  const auto s = update.scalars.as<rules::AdamScalars<float>>();
  return s.amsgrad == 0 && s.one_minus_beta1 < 0.5f;
}

/// Whether both moments are stored in these formats, in blocks of their usual length.
bool has_formats(const ParameterUpdate& update, Format m, Format v) {
  return update.formats[0] == state_format(m) && update.formats[1] == state_format(v);
}

/// fp32 throughout, or bf16 with what is split off or rounded away.
bool has_usual_weights(const ParameterUpdate& update) {
  return update.gradient_type == update.weight_type && update.master_format != MasterFormat::kF32;
}

}  // namespace

FusedKernel fused_kernel(const ParameterUpdate& update) {
  if (!is_adam(update) || !has_usual_weights(update)) return nullptr;
  if (has_formats(update, Format::kSym8, Format::kRoot8)) return fused_adam_8bit();
  if (has_formats(update, Format::kNF4, Format::kRoot4)) return fused_adam_4bit();
  if (has_formats(update, Format::kSym8, Format::kRoot4)) return fused_adam_8bit_4bit();
  return nullptr;
}

}  // namespace outboard::cpu
