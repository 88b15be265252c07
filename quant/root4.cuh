// State format root4 on the device; the definition is in root4.h.
#ifndef OUTBOARD_QUANT_ROOT4_CUH_
#define OUTBOARD_QUANT_ROOT4_CUH_

#include "quant/block_codec.cuh"
#include "quant/root4.h"

namespace outboard::quant::device {

using Root4 = BlockCodec<quant::Root4>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_ROOT4_CUH_
