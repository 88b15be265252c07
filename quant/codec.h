// The interface between a state format and the CPU kernels: decode a run of a state array to fp32,
// encode it back. One format is quant/<stem>.h (scalar definition), quant/<stem>.cc (Highway
// codec), quant/<stem>.cuh (device code).
#ifndef OUTBOARD_QUANT_CODEC_H_
#define OUTBOARD_QUANT_CODEC_H_

#include <cstddef>
#include <cstdint>

#include "outboard/state_format.h"
#include "quant/random.h"

namespace outboard {

/// What a stochastic encoder draws from: random numbers are a function of (key, step, stream,
/// element index).
struct RandomContext {
  RandomKey key;
  uint32_t step = 0;
  uint32_t stream =
      0;  ///< 0 weights, 1 first moment, 2 second moment, 3 max_exp_avg_sq, 4 second first-moment
};

/// Codec of one format on the CPU. Function pointers are resolved once per tensor.
struct Codec {
  /// Elements are already fp32 at `codes`: kernels work on them in place and call neither function.
  bool is_plain_f32;
  /// Decodes elements [first, first + count) to `out`. `first` and `count` are multiples of the
  /// format's unit.
  void (*decode)(const StateArray& array, size_t first, size_t count, float* out);
  /// Encodes `in` to elements [first, first + count). `elements` is the array's true length: what
  /// lies beyond is stored as the code of zero and never enters a block's scale. `element_offset`
  /// is the index of the array's element 0 in the parameter.
  void (*encode)(const float* in, size_t first, size_t count, size_t elements,
                 const RandomContext& random, uint64_t element_offset, const StateArray& array);
};

/// The codec for the best target that the CPU has (or the one forced by a test, see
/// cpu_kernels/targets.h).
[[nodiscard]] Codec codec(Format format);

/// The same for a format's type; specialised in quant/<stem>.cc, called by codec() only.
template <class FormatType>
[[nodiscard]] Codec resolve_codec();

}  // namespace outboard

#endif  // OUTBOARD_QUANT_CODEC_H_
