"""outboard: training with the optimizer state in host memory, or in few bits.

    import torch, outboard
    optimizer = outboard.CPUOffloadOptimizer(model.parameters(), torch.optim.AdamW, lr=3e-4)
    optimizer = outboard.AdamW8bit(model.parameters(), lr=3e-4)

Public names are imported here; the arithmetic is in the native library.
"""

import torch

from ._library import load_library

load_library()

from .checkpoint import load, save  # noqa: E402
from .cpu_offload_optimizer import CPUOffloadOptimizer  # noqa: E402
from .low_bit import NAMED_CLASSES, LowBitOptimizer  # noqa: E402
from .optim import LAMB, LARS, AdEMAMix, Lion  # noqa: E402
from .stats import MemoryStats, Stats, StepStats  # noqa: E402

globals().update(NAMED_CLASSES)  # AdamW8bit, Lion4bit, …


def build_info() -> dict[str, str]:
    """What the native library was built with: version, CUDA ("none" without), SIMD target, TBB."""
    return dict(torch.ops.outboard.build_info())


def state_formats() -> list[str]:
    """The names that `state_format` takes for both signed and unsigned state; "a/b" combines two,
    and the name of a single format (sym8, root8, …) stands for both."""
    return list(torch.ops.outboard.state_formats())


__version__ = build_info().get("version", "unknown")
__all__ = [
    "LAMB",
    "LARS",
    "AdEMAMix",
    "CPUOffloadOptimizer",
    "Lion",
    "LowBitOptimizer",
    "MemoryStats",
    "Stats",
    "StepStats",
    "build_info",
    "load",
    "save",
    "state_formats",
    *NAMED_CLASSES,
]
