// State format e4m3_root on the device; the definition is in e4m3_root.h.
#ifndef OUTBOARD_QUANT_E4M3_ROOT_CUH_
#define OUTBOARD_QUANT_E4M3_ROOT_CUH_

#include "quant/block_codec.cuh"
#include "quant/e4m3_root.h"

namespace outboard::quant::device {

using E4M3Root = BlockCodec<quant::E4M3Root>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_E4M3_ROOT_CUH_
