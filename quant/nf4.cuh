// State format nf4 on the device; the definition is in nf4.h.
#ifndef OUTBOARD_QUANT_NF4_CUH_
#define OUTBOARD_QUANT_NF4_CUH_

#include "quant/block_codec.cuh"
#include "quant/nf4.h"

namespace outboard::quant::device {

using NF4 = BlockCodec<quant::NF4>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_NF4_CUH_
