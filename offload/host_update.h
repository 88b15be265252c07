// Stage 2: gradients on the host become updated weights. The only stage that computes; it runs on
// the driver thread and in the compute arena.
#ifndef OUTBOARD_OFFLOAD_HOST_UPDATE_H_
#define OUTBOARD_OFFLOAD_HOST_UPDATE_H_

#include <vector>

#include "cpu_kernels/parallel.h"
#include "offload/gradient_intake.h"
#include "offload/parameter.h"

namespace outboard {

/// Elements that a thread takes at a time: 32 KiB of each fp32 stream, hundreds of pieces of work
/// per chunk. A multiple of every format's block and of a norm segment.
inline constexpr size_t kGrainElements = 8192;

/// One run of one parameter with all that its update needs. Where the gradient lies is noted when
/// the step is made: the parameter's own fields belong to the next one by the time of the update.
struct PieceUpdate {
  Parameter* parameter;
  size_t index;  ///< which piece of its parameter
  size_t first;
  size_t last;
  GradientOnHost arrival;
  const void* gradient;  ///< of the parameter's first element
  DType gradient_type;
  uint32_t step;            ///< the parameter's own, of this update
  EventPtr weight_is_free;  ///< after it, nobody reads the old weight on the device
};

/// Proof that the host images of these pieces hold new weights; only HostUpdate makes one. Stage 3
/// accepts nothing else.
class UpdatedWeight {
 public:
  struct Piece {
    Parameter* parameter;
    size_t index;
    size_t first;
    size_t last;
  };
  [[nodiscard]] const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  friend class HostUpdate;
  explicit UpdatedWeight(std::vector<Piece> pieces) : pieces_(std::move(pieces)) {}
  std::vector<Piece> pieces_;
};

/// Seconds that the driver spent in stage 2 since reset.
struct HostUpdateTimes {
  double waiting = 0;
  double updating = 0;
};

/// Used by one thread.
class HostUpdate {
 public:
  explicit HostUpdate(cpu::Arena& arena) : arena_(arena) {}

  /// Adds a staged micro-batch to the parameter's accumulator and takes the sums of squares of the
  /// sum. Blocks until the slot's copy is done.
  void accumulate(const GradientInSlot& staged);

  /// Sums of squares of a gradient in host memory.
  void sum_of_squares(Parameter& parameter);

  /// The first pass of rules that look at whole parameters (norms, row and column means), over each
  /// of `parameters`, whose first pieces are among `pieces` and whose gradients have arrived:
  /// replaces their scalars by those that it gives. Comes before the first update() of a piece.
  void measure(const std::vector<PieceUpdate>& pieces, const std::vector<Parameter*>& parameters);

  /// Waits for the gradients, then updates master, state and host image of every piece.
  [[nodiscard]] UpdatedWeight update(const std::vector<PieceUpdate>& pieces);

  /// The caller computed the new host image itself (parameters without a rule).
  [[nodiscard]] UpdatedWeight adopt(Parameter& parameter) const;

  [[nodiscard]] HostUpdateTimes& times() { return times_; }

 private:
  cpu::Arena& arena_;
  HostUpdateTimes times_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_HOST_UPDATE_H_
