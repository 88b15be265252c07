"""CPUOffloadOptimizer: a torch.optim.Optimizer whose masters and state live in host memory.

Its options and what they mean; the rest is in _engine_optimizer.py.
"""

from __future__ import annotations

from typing import Any

import torch

from ._base_class import BaseClass
from ._engine_optimizer import EngineOptimizer
from ._options import OffloadOptions


class CPUOffloadOptimizer(EngineOptimizer):
    """Trains CUDA parameters with master weights and optimizer state in host memory.

    Gradients are copied to the host while backward runs; step() updates them there chunk by chunk
    and returns once the last weight copy is enqueued: the current CUDA stream waits for it, the
    device is not synchronised. Parameters on the CPU are updated in place. Not thread safe.

    Arguments:
        params: as any torch optimizer takes them, names included.
        optimizer_class: torch.optim.AdamW, Adam, SGD, Adagrad, RMSprop and outboard.Lion, AdEMAMix,
            LAMB, LARS have native rules; any other class runs on fp32 host masters. Its keyword
            arguments follow as ours.
        offload_gradients: free a device gradient once it is copied; the host adds up further
            backwards in fp32. Clip with max_grad_norm or this class's clip_grad_norm_ then.
        min_offload_elements: smaller parameters stay resident (state on the device).
        master: "auto" (split for bf16, fp32 for fp16), "split", "fp32", "stochastic" or "none".
        state_format: how state is stored: "fp32", "bf16", "8bit", "4bit", "8bit/4bit", "fp8" and so
            on; "a/b" stores signed state as in a and second moments as in b.
        block_size: elements that share a scale, in formats that have blocks; None: their default.
        min_quantized_elements: smaller parameters have fp32 state in the place of such formats.
        state_formats: other formats for some parameters: {name pattern or parameter: name, or
            (name, block size)}. The first that fits counts; each must fit.
        max_grad_norm: clip every step's global norm to this.
        skip_nonfinite: a step with an Inf or NaN gradient changes nothing, and is counted.
        threads: compute threads of the host update; None chooses.
        pin_memory: register transfer memory with CUDA.
        seed: of stochastic rounding.
        resident: parameters, names or name patterns (as in fnmatch) that stay resident.
        fused_amp: take grad_scale and found_inf from a GradScaler instead of being unscaled.
        chunk_elements: unit of pipeline work; None chooses.
        simulate: [seed, delay_us, poison] treats CPU parameters as if they were on a device.

    A group may have its own "master", "state_format" and "block_size". `foreach` and `fused` are
    accepted and choose nothing here; `capturable` and `differentiable` are refused. A learning rate
    tensor on a device is waited for at each step. `state` holds live views (fp32 copies of state in
    formats with blocks); assign an empty dict to reset it.
    """

    def __init__(
        self,
        params: Any,
        optimizer_class: type = torch.optim.AdamW,
        *,
        offload_gradients: bool = False,
        min_offload_elements: int = 4096,
        master: str = "auto",
        state_format: str = "fp32",
        block_size: int | None = None,
        min_quantized_elements: int = 4096,
        state_formats: Any = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = True,
        threads: int | None = None,
        pin_memory: bool = True,
        seed: int = 0,
        resident: Any = (),
        fused_amp: bool = False,
        chunk_elements: int | None = None,
        simulate: Any = None,
        **base_options: Any,
    ):
        own = {name: value for name, value in locals().items() if name in OffloadOptions.names()}
        arguments = {"optimizer_class": optimizer_class, **own, **base_options}
        base = BaseClass(optimizer_class, base_options, OffloadOptions.names())
        super().__init__(params, base, OffloadOptions(**own), arguments)
