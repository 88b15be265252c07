// State format ao4_unsigned on the device; the definition is in ao4_unsigned.h.
#ifndef OUTBOARD_QUANT_AO4_UNSIGNED_CUH_
#define OUTBOARD_QUANT_AO4_UNSIGNED_CUH_

#include "quant/ao4_unsigned.h"
#include "quant/block_codec.cuh"

namespace outboard::quant::device {

using Ao4Unsigned = BlockCodec<quant::Ao4Unsigned>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_AO4_UNSIGNED_CUH_
