// State format e4m3 on the device; the definition is in e4m3.h.
#ifndef OUTBOARD_QUANT_E4M3_CUH_
#define OUTBOARD_QUANT_E4M3_CUH_

#include "quant/block_codec.cuh"
#include "quant/e4m3.h"

namespace outboard::quant::device {

using E4M3 = BlockCodec<quant::E4M3>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_E4M3_CUH_
