// State format bf16 on the device; the definition is in bf16.h.
#ifndef OUTBOARD_QUANT_BF16_CUH_
#define OUTBOARD_QUANT_BF16_CUH_

#include "quant/bf16.h"
#include "quant/device_rounding.cuh"
#include "quant/elementwise_codec.cuh"

namespace outboard::quant::device {

template <>
__device__ __forceinline__ uint32_t encode_pair<quant::BF16>(float low, float high, uint32_t) {
  return bf16_pair_nearest(low, high);
}

using BF16 = ElementwiseCodec<quant::BF16>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_BF16_CUH_
