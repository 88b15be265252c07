// State format dynamic8_signed on the device; the definition is in dynamic8_signed.h.
#ifndef OUTBOARD_QUANT_DYNAMIC8_SIGNED_CUH_
#define OUTBOARD_QUANT_DYNAMIC8_SIGNED_CUH_

#include "quant/block_codec.cuh"
#include "quant/dynamic8_signed.h"
#include "quant/dynamic_map.cuh"

namespace outboard::quant::device {

template <>
struct RunEncoder<quant::Dynamic8Signed> : DynamicRunEncoder<quant::Dynamic8Signed> {
  using DynamicRunEncoder::DynamicRunEncoder;
};

using Dynamic8Signed = BlockCodec<quant::Dynamic8Signed>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_DYNAMIC8_SIGNED_CUH_
