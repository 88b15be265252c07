// State format root8s on the device; the definition is in root8s.h.
#ifndef OUTBOARD_QUANT_ROOT8S_CUH_
#define OUTBOARD_QUANT_ROOT8S_CUH_

#include "quant/block_codec.cuh"
#include "quant/root8s.h"

namespace outboard::quant::device {

using Root8Stochastic = BlockCodec<quant::Root8Stochastic>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_ROOT8S_CUH_
