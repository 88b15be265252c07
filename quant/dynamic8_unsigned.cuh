// State format dynamic8_unsigned on the device; the definition is in dynamic8_unsigned.h.
#ifndef OUTBOARD_QUANT_DYNAMIC8_UNSIGNED_CUH_
#define OUTBOARD_QUANT_DYNAMIC8_UNSIGNED_CUH_

#include "quant/block_codec.cuh"
#include "quant/dynamic8_unsigned.h"
#include "quant/dynamic_map.cuh"

namespace outboard::quant::device {

template <>
struct RunEncoder<quant::Dynamic8Unsigned> : DynamicRunEncoder<quant::Dynamic8Unsigned> {
  using DynamicRunEncoder::DynamicRunEncoder;
};

using Dynamic8Unsigned = BlockCodec<quant::Dynamic8Unsigned>;

}  // namespace outboard::quant::device

#endif  // OUTBOARD_QUANT_DYNAMIC8_UNSIGNED_CUH_
