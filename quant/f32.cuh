// State format f32 on the device; the definition is in f32.h.
#ifndef OUTBOARD_QUANT_F32_CUH_
#define OUTBOARD_QUANT_F32_CUH_

#include "quant/elementwise_codec.cuh"
#include "quant/f32.h"

namespace outboard::quant::device {

using F32 = ElementwiseCodec<quant::F32>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_F32_CUH_
