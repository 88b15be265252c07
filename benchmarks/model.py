"""The model that every end-to-end benchmark trains, so that their figures can stand side by side:
GPT with a tied head over 50,304 tokens, without positions, activation checkpointing, bf16.

Systems and timing are in offload.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from gpt.model import GPT, SIZES, Shape, loss_of

__all__ = ["BENCHMARK_SIZES", "build", "loss_of", "tokens"]

VOCABULARY = 50304
BENCHMARK_SIZES = {"tiny": Shape(256, 2, 4)} | {n: SIZES[n] for n in ("1.3B", "2.7B", "6.7B")}


def build(size: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> GPT:
    """The model with the same weights for the same size, made directly in `dtype` on `device`."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return GPT(BENCHMARK_SIZES[size], VOCABULARY, recompute=True)
    finally:
        torch.set_default_dtype(before)


def tokens(batches: int, batch: int, seq: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Random inputs and their successors; the same ones in every run."""
    generator = torch.Generator(device).manual_seed(1)
    shape = (batches, batch, seq + 1)
    drawn = torch.randint(0, VOCABULARY, shape, device=device, generator=generator)
    return [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in drawn]
