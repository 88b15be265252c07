// State format aofp8 on the device; the definition is in aofp8.h.
#ifndef OUTBOARD_QUANT_AOFP8_CUH_
#define OUTBOARD_QUANT_AOFP8_CUH_

#include "quant/aofp8.h"
#include "quant/block_codec.cuh"

namespace outboard::quant::device {

using AoFP8 = BlockCodec<quant::AoFP8>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_AOFP8_CUH_
