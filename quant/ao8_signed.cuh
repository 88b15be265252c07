// State format ao8_signed on the device; the definition is in ao8_signed.h.
#ifndef OUTBOARD_QUANT_AO8_SIGNED_CUH_
#define OUTBOARD_QUANT_AO8_SIGNED_CUH_

#include "quant/ao8_signed.h"
#include "quant/block_codec.cuh"

namespace outboard::quant::device {

using Ao8Signed = BlockCodec<quant::Ao8Signed>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_AO8_SIGNED_CUH_
