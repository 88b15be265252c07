// State format lpmm4_unsigned on the device; the definition is in lpmm4_unsigned.h.
#ifndef OUTBOARD_QUANT_LPMM4_UNSIGNED_CUH_
#define OUTBOARD_QUANT_LPMM4_UNSIGNED_CUH_

#include "quant/block_codec.cuh"
#include "quant/lpmm4_unsigned.h"

namespace outboard::quant::device {

using Lpmm4Unsigned = BlockCodec<quant::Lpmm4Unsigned>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_LPMM4_UNSIGNED_CUH_
