// State format lpmm4_signed on the device; the definition is in lpmm4_signed.h.
#ifndef OUTBOARD_QUANT_LPMM4_SIGNED_CUH_
#define OUTBOARD_QUANT_LPMM4_SIGNED_CUH_

#include "quant/block_codec.cuh"
#include "quant/lpmm4_signed.h"

namespace outboard::quant::device {

using Lpmm4Signed = BlockCodec<quant::Lpmm4Signed>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_LPMM4_SIGNED_CUH_
