"""How torch.amp.GradScaler works with gradients that have left the device.

scaler.step() looks for overflow in the gradients it finds on the parameters, and scaler.update()
fails if it found none to look at. With offload_gradients=True none is left, so for the time of one
scaler.step() the smallest offloaded parameter carries a stand-in gradient: zeros, or Inf if a
gradient that left was not finite. The scaler's own code then finds what it must, and step() takes
the stand-in away and lets the engine unscale the real gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .hyper import WHO


class ScalerBridge:
    """Whether a scaler is at work, and at most one stand-in gradient. Not thread safe."""

    def __init__(self) -> None:
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None
        self._is_stepping = False  # a scaler asked, and no step was taken since

    def asked(self) -> None:
        """A scaler's step() has begun."""
        self._is_stepping = True

    def lend(self, engine: Any, offloaded: Iterable[torch.Tensor]) -> None:
        """Puts a stand-in gradient on the smallest of `offloaded`. Blocks until the gradients have
        arrived, as the step itself would."""
        self.take_back()
        free = [p for p in offloaded if p.grad is None and p.numel() > 0]
        if free:
            is_finite = math.isfinite(engine.gradient_norm(None))
            parameter = min(free, key=torch.Tensor.numel)
            stand_in = torch.full_like(parameter, 0.0 if is_finite else math.inf)
            parameter.grad = stand_in
            self._held = (parameter, stand_in)

    def take_back(self) -> None:
        """Removes the stand-in if it is still there."""
        if self._held is not None:
            parameter, stand_in = self._held
            self._held = None
            if parameter.grad is stand_in:
                parameter.grad = None

    def note_unscaling(self, scale: Any, parameters: Iterable[torch.Tensor]) -> None:
        """Marks gradients as changed if a scaler unscaled them in place.

        The operator that it does so with does not count up their version, by which the engine
        notices changes.
        """
        if self._is_stepping and scale is None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch.autograd.graph.increment_version(
                g for g in gradients if g.layout is torch.strided
            )
        self._is_stepping = False


def scaling_of(optimizer: Any, offload_gradients: bool) -> tuple[torch.Tensor | None, ...]:
    """(grad_scale, found_inf) that a scaler left on the optimizer, each None if there is none.

    Raises RuntimeError if scaler.unscale_() was called although it could not reach the gradients.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    scale = getattr(optimizer, "grad_scale", None)
    if offload_gradients and found_inf is not None and scale is None:
        raise RuntimeError(
            f"[{WHO}] scaler.unscale_() was called, but with offload_gradients=True the gradients "
            "are not on the device; leave that call out, the step unscales and clips by itself "
            "(max_grad_norm=, optimizer.clip_grad_norm_)"
        )
    if isinstance(scale, (int, float)):
        scale = torch.tensor(float(scale), dtype=torch.float32)
    return scale, found_inf if isinstance(found_inf, torch.Tensor) else None
