// State format sym8 on the device; the definition is in sym8.h.
#ifndef OUTBOARD_QUANT_SYM8_CUH_
#define OUTBOARD_QUANT_SYM8_CUH_

#include "quant/block_codec.cuh"
#include "quant/sym8.h"

namespace outboard::quant::device {

using Sym8 = BlockCodec<quant::Sym8>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_SYM8_CUH_
