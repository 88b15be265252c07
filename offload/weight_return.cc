// Stage 3; see weight_return.h.
#include "offload/weight_return.h"

namespace outboard {

void WeightReturn::begin(const EventPtr& weight_is_free) {
  // Order: backward reads the weights on the compute stream, also after a gradient has appeared; a
  // copy that overtook it would change the weights under its hands.
  if (up_ != nullptr) up_->wait(weight_is_free);
}

EventPtr WeightReturn::send(const UpdatedWeight& updated) {
  if (up_ == nullptr) return nullptr;
  for (const UpdatedWeight::Piece& piece : updated.pieces()) {
    if (!piece.parameter->is_offloaded()) continue;  // updated in place
    const size_t width = bytes_of(piece.parameter->spec.type);
    up_->copy_to_device(
        static_cast<std::byte*>(piece.parameter->spec.weight) + piece.first * width,
        static_cast<const std::byte*>(piece.parameter->host_weight) + piece.first * width,
        (piece.last - piece.first) * width);
  }
  EventPtr sent = up_->record();
  for (const UpdatedWeight::Piece& piece : updated.pieces()) {
    // The next update of the piece waits for this before it overwrites the image.
    piece.parameter->returned[piece.index] = sent;
  }
  return sent;
}

EventPtr WeightReturn::finish() { return up_ == nullptr ? nullptr : up_->record(); }

}  // namespace outboard
