// State format bf16_stochastic on the device; the definition is in bf16_stochastic.h.
#ifndef OUTBOARD_QUANT_BF16_STOCHASTIC_CUH_
#define OUTBOARD_QUANT_BF16_STOCHASTIC_CUH_

#include "quant/bf16_stochastic.h"
#include "quant/device_rounding.cuh"
#include "quant/elementwise_codec.cuh"

namespace outboard::quant::device {

template <>
__device__ __forceinline__ uint32_t encode_pair<quant::BF16Stochastic>(float low, float high,
                                                                       uint32_t draws) {
  return bf16_pair_stochastic(low, high, draws);
}

using BF16Stochastic = ElementwiseCodec<quant::BF16Stochastic>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_BF16_STOCHASTIC_CUH_
