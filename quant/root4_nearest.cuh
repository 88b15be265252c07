// State format root4_nearest on the device; the definition is in root4_nearest.h.
#ifndef OUTBOARD_QUANT_ROOT4_NEAREST_CUH_
#define OUTBOARD_QUANT_ROOT4_NEAREST_CUH_

#include "quant/block_codec.cuh"
#include "quant/root4_nearest.h"

namespace outboard::quant::device {

using Root4Nearest = BlockCodec<quant::Root4Nearest>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_ROOT4_NEAREST_CUH_
