// State format ao4_signed on the device; the definition is in ao4_signed.h.
#ifndef OUTBOARD_QUANT_AO4_SIGNED_CUH_
#define OUTBOARD_QUANT_AO4_SIGNED_CUH_

#include "quant/ao4_signed.h"
#include "quant/block_codec.cuh"

namespace outboard::quant::device {

using Ao4Signed = BlockCodec<quant::Ao4Signed>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_AO4_SIGNED_CUH_
