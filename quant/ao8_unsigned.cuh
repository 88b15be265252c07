// State format ao8_unsigned on the device; the definition is in ao8_unsigned.h.
#ifndef OUTBOARD_QUANT_AO8_UNSIGNED_CUH_
#define OUTBOARD_QUANT_AO8_UNSIGNED_CUH_

#include "quant/ao8_unsigned.h"
#include "quant/block_codec.cuh"

namespace outboard::quant::device {

using Ao8Unsigned = BlockCodec<quant::Ao8Unsigned>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_AO8_UNSIGNED_CUH_
