// What a rule does with the norms of a whole parameter: the clip that LAMB and LARS share. Norms
// are fp64 and come from sums in a fixed order, so the same bits result on host and device. The
// rules themselves are in lamb.h and lars.h.
#ifndef OUTBOARD_RULES_TRUST_RATIO_H_
#define OUTBOARD_RULES_TRUST_RATIO_H_

#include "outboard/hd.h"

namespace outboard::rules {

/// The factor that keeps an update's norm at most `max_unorm` times the weight's, as bitsandbytes'
/// max_unorm; it only shrinks. 1 for a weight of norm 0, which could otherwise never leave zero.
OUTBOARD_HD double clip_ratio(double max_unorm, double weight_norm, double update_norm) {
  const double most = exact::mul(max_unorm, weight_norm);
  return weight_norm > 0 && update_norm > most ? exact::div(most, update_norm) : 1.0;
}

}  // namespace outboard::rules

#endif  // OUTBOARD_RULES_TRUST_RATIO_H_
