"""outboard: training with the optimizer state in host memory.

    import torch, outboard
    optimizer = outboard.CPUOffloadOptimizer(model.parameters(), torch.optim.AdamW, lr=3e-4)

Public names are imported here; the arithmetic is in the native library.
"""

import torch

from ._library import load_library

load_library()

from .checkpoint import load, save  # noqa: E402
from .cpu_offload_optimizer import CPUOffloadOptimizer  # noqa: E402
from .optim import LAMB, LARS, AdEMAMix, Lion  # noqa: E402
from .stats import MemoryStats, Stats, StepStats  # noqa: E402


def build_info() -> dict[str, str]:
    """What the native library was built with: version, CUDA ("none" without), SIMD target, TBB."""
    return dict(torch.ops.outboard.build_info())


__version__ = build_info().get("version", "unknown")
__all__ = [
    "LAMB",
    "LARS",
    "AdEMAMix",
    "CPUOffloadOptimizer",
    "Lion",
    "MemoryStats",
    "Stats",
    "StepStats",
    "build_info",
    "load",
    "save",
]
