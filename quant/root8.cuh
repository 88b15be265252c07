// State format root8 on the device; the definition is in root8.h.
#ifndef OUTBOARD_QUANT_ROOT8_CUH_
#define OUTBOARD_QUANT_ROOT8_CUH_

#include "quant/block_codec.cuh"
#include "quant/root8.h"

namespace outboard::quant::device {

using Root8 = BlockCodec<quant::Root8>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_ROOT8_CUH_
