"""The systems that offload.py compares: how each one is constructed and how it takes a step.

A case is a system with its options. Construction happens in the process that runs the case.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LEARNING_RATE = 1e-5
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Case:
    """One system with one choice of options; `clip` is the largest gradient norm, 0 for off."""

    system: str  # "none", "outboard", "torch", "torchao" or "deepspeed"
    clip: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    attach: bool = False


def _outboard(clip: float = 0.0, **options: Any) -> Case:
    return Case("outboard", clip, options)


def _hidden(clip: float = 0.0, **options: Any) -> Case:
    """The model is attached; gradients are given away."""
    return Case("outboard", clip, {"offload_gradients": True} | options, attach=True)


def _streamed(clip: float = 0.0, **options: Any) -> Case:
    return _hidden(clip, placement="streamed", **options)


# Four parameters in ten, by the last digit of their number.
_MIXTURE = {"*[0-3][]]": "streamed"}
# The first parameter: its gradient comes last, and the next forward needs it first.
_EMBEDDING = ("*[[]0[]]",)
# bf16 state without a master is what torchao's optimizer keeps for a bf16 model.
_TORCHAO_LIKE = {"state_format": "bf16", "master": "none"}
# Random tokens give norms between 1 and 2: clipping to the first fires at times, to the second
# always, to the third never; results give the last factor.
_USUAL, _TINY, _HUGE = 1.0, 1e-3, 1e3

CASES: dict[str, Case] = {
    "noopt": Case("none"),
    "fp32-clip": _outboard(_USUAL),
    "fp32": _outboard(),
    "fp32-clip-fires": _outboard(_TINY),
    "fp32-clip-grad": _outboard(_USUAL, offload_gradients=True),
    "fp32-grad": _outboard(offload_gradients=True),
    "fp32-master32-clip": _outboard(_USUAL, master="fp32"),
    "bf16-clip": _outboard(_USUAL, state_format="bf16"),
    "bf16-nomaster": _outboard(**_TORCHAO_LIKE),
    "bf16-nomaster-clip": _outboard(_USUAL, **_TORCHAO_LIKE),
    "bf16-nomaster-grad": _outboard(offload_gradients=True, **_TORCHAO_LIKE),
    "8bit-clip": _outboard(_USUAL, state_format="8bit"),
    "8bit": _outboard(state_format="8bit"),
    "4bit-clip": _outboard(_USUAL, state_format="4bit"),
    "8bit-next": _hidden(_HUGE, state_format="8bit", schedule="next_forward"),
    "8bit-streamed": _streamed(state_format="8bit", skip_nonfinite=False),
    "8bit-streamed-clip": _streamed(_HUGE, state_format="8bit"),
    "8bit-streamed-clip-embedding": _streamed(_HUGE, state_format="8bit", resident=_EMBEDDING),
    "8bit-streamed-clip-fires": _streamed(_TINY, state_format="8bit"),
    "8bit-streamed-next": _streamed(_HUGE, state_format="8bit", schedule="next_forward"),
    "8bit-streamed-at-step": _streamed(_HUGE, state_format="8bit", schedule="at_step"),
    "4bit-streamed-clip": _streamed(_HUGE, state_format="4bit"),
    "fp32-next": _hidden(_HUGE, schedule="next_forward"),
    "fp32-hidden": _hidden(skip_nonfinite=False),
    "fp32-streamed": _streamed(skip_nonfinite=False),
    "fp32-streamed-clip": _streamed(_HUGE),
    "fp32-streamed-clip-fires": _streamed(_TINY),
    "fp32-mixed": _hidden(skip_nonfinite=False, placement=_MIXTURE),
    "fp32-mixed-clip-fires": _hidden(_TINY, placement=_MIXTURE),
    "8bit-auto-clip": Case("outboard", _HUGE, {"state_format": "8bit"}, attach=True),
    "fp32-auto-clip": Case("outboard", _HUGE, attach=True),
    "bf16-nomaster-hidden": _hidden(skip_nonfinite=False, **_TORCHAO_LIKE),
    "bf16-nomaster-streamed": _streamed(skip_nonfinite=False, **_TORCHAO_LIKE),
    "torch-fused": Case("torch"),
    "torch-fused-clip": Case("torch", _USUAL),
    "torchao": Case("torchao"),
    "torchao-grad": Case("torchao", options={"offload_gradients": True}),
    "deepspeed-z2": Case("deepspeed"),
    "deepspeed-z2-clip": Case("deepspeed", _USUAL),
}


class NotInstalled(Exception):
    """The case needs a package, a device or memory that is not here."""


class System:
    """One constructed system. `step` leaves the model without gradients.

    Forward is to call `model` where the system wraps it, and a loss goes to `backward`.
    """

    def __init__(
        self,
        step: Callable[[], None],
        optimizer: Any = None,
        model: nn.Module | None = None,
        backward: Callable[[Tensor], Any] = Tensor.backward,
    ) -> None:
        self.step = step
        self.model = model
        self.backward = backward
        self._optimizer = optimizer

    def synchronize(self) -> None:
        if self._optimizer is not None:
            self._optimizer.synchronize()

    def stats(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
        """Memory, the last step and elements by placement; empty for systems without figures."""
        if self._optimizer is None:
            return {}, {}, {}
        stats = self._optimizer.stats()
        return dataclasses.asdict(stats.memory), dataclasses.asdict(stats.step), stats.elements


def make_system(
    case: Case, model: nn.Module, extra: dict[str, Any], batch: int, accumulation: int
) -> System:
    """Constructs the case's optimizer for `model`; `extra` are more options for outboard, `batch`
    the sequences of one of the `accumulation` backwards of a step.

    Raises NotInstalled if the case cannot run on this machine.
    """
    parameters = list(model.parameters())
    if case.system == "none":
        return _no_optimizer(parameters)
    if case.system == "outboard":
        return _make_outboard(case, model, extra)
    if case.system == "deepspeed":
        return _make_deepspeed(case, model, batch, accumulation)
    optimizer = _make_peer(case, parameters)

    def step() -> None:
        if case.clip:
            nn.utils.clip_grad_norm_(parameters, case.clip)
        optimizer.step()
        optimizer.zero_grad()

    return System(step)


def free_gradients_in_hook(parameters: list[nn.Parameter]) -> list[Any]:
    """Makes every gradient vanish as soon as it is complete; returns the hooks' handles."""

    def forget(parameter: torch.Tensor) -> None:
        parameter.grad = None

    return [p.register_post_accumulate_grad_hook(forget) for p in parameters]


def _no_optimizer(parameters: list[nn.Parameter]) -> System:
    free_gradients_in_hook(parameters)
    return System(lambda: None)


def _make_outboard(case: Case, model: nn.Module, extra: dict[str, Any]) -> System:
    import outboard

    optimizer = outboard.CPUOffloadOptimizer(
        model.parameters(),
        torch.optim.AdamW,
        max_grad_norm=case.clip or None,
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        **(case.options | extra),
    )

    if case.attach:
        optimizer.attach(model)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return System(step, optimizer)


def _make_peer(case: Case, parameters: list[nn.Parameter]) -> Any:
    keywords = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    if case.system == "torch":
        return torch.optim.AdamW(parameters, fused=True, **keywords)
    if parameters[0].device.type != "cuda":
        raise NotInstalled("torchao's CPUOffloadOptimizer needs a GPU")
    try:
        from torchao.optim import CPUOffloadOptimizer
    except ImportError as error:
        raise NotInstalled(f"torchao cannot be imported: {error}") from error
    # It adds fused=True for torch's AdamW by itself.
    return CPUOffloadOptimizer(parameters, torch.optim.AdamW, **case.options, **keywords)


def _make_deepspeed(case: Case, model: nn.Module, batch: int, accumulation: int) -> System:
    """ZeRO stage 2 with state and its own CPU Adam on the host, in one process."""
    parameters = list(model.parameters())
    if parameters[0].device.type != "cuda":
        raise NotInstalled("DeepSpeed's offload needs a GPU")
    try:
        import deepspeed
        from deepspeed.ops.adam import DeepSpeedCPUAdam
    except ImportError as error:
        raise NotInstalled(f"deepspeed cannot be imported: {error}") from error
    _refuse_without_host_memory(sum(p.numel() for p in parameters))
    # A group of one needs neither a launcher nor a port; the engine insists on the variable.
    os.environ.setdefault("LOCAL_RANK", "0")
    torch.distributed.init_process_group(
        "nccl", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    atexit.register(torch.distributed.destroy_process_group)
    adam = DeepSpeedCPUAdam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adam,
        config={
            "train_micro_batch_size_per_gpu": batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": case.clip,
            "bf16": {"enabled": True},
            "zero_optimization": {
                "stage": 2,
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
                "overlap_comm": True,
                "contiguous_gradients": True,
            },
        },
    )

    def backward(loss: Tensor) -> None:
        # The engine counts: it updates in the last of a step's `accumulation` calls only.
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()

    return System(lambda: None, model=engine, backward=backward)


def _refuse_without_host_memory(elements: int) -> None:
    """DeepSpeed's host memory is taken before it is counted; a machine without it would kill the
    process. The fp32 weights, their gradients and bf16 weights are one pinned buffer each, and
    torch rounds pinned buffers up to powers of two; two moments are plain memory."""
    pinned = sum(1 << (size * elements - 1).bit_length() for size in (4, 4, 2))
    needed = pinned + 8 * elements
    free = available_bytes()
    if needed > free:
        raise NotInstalled(
            f"deepspeed needs {needed / 2**30:.0f} GiB of host memory for {elements:,} parameters, "
            f"{free / 2**30:.0f} GiB are available; choose a smaller --size"
        )


def available_bytes() -> int:
    """Host memory that can still be taken without swapping."""
    return bytes_of("/proc/meminfo", "MemAvailable")


def bytes_of(path: str, field: str) -> int:
    """A figure that the kernel gives in KiB."""
    with open(path) as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
