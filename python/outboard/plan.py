"""The planner: machines, wishes and plans as plain data.

The cost model is the native library's (include/outboard/plan.h, docs/planning.md); nothing here
knows what an iteration costs. Shapes of models are model_shape.py's.

    machine = outboard.plan.measured_machine(device=0)
    plan = outboard.plan.make_plan([p.numel() for p in model.parameters()], machine,
                                   PlanWish(forward_s=0.16, backward_s=0.47))
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

WHO = "outboard.plan"
SCHEDULES = ("at_step", "next_forward", "in_backward")
PLACEMENTS = ("host", "streamed")
_UPDATE = "update "
# A model's forward and backward reach this share of a large matrix product's speed (measured: 0.55
# of 0.7 PFLOP/s).
_MODEL_EFFICIENCY = 0.8


@dataclass(frozen=True)
class Machine:
    """What a machine does: bytes per second; updates in seconds per element."""

    link_down: float
    link_up: float
    link_duplex: float  # each way, while both run
    host_bandwidth: float
    device_bandwidth: float = 0.0
    flops: float = 0.0  # of forward and backward; 0: not known
    threads: int = 0
    updates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, float]) -> Machine:
        """What the native library gives."""
        updates = {k.removeprefix(_UPDATE): v for k, v in numbers.items() if k.startswith(_UPDATE)}
        plain = {k: v for k, v in numbers.items() if not k.startswith(_UPDATE)}
        return cls(**{**plain, "threads": int(plain["threads"])}, updates=updates)

    def numbers(self) -> dict[str, float]:
        """What the native library takes."""
        values = {f.name: float(getattr(self, f.name)) for f in fields(self) if f.name != "updates"}
        return values | {_UPDATE + name: float(s) for name, s in self.updates.items()}

    @classmethod
    def load(cls, path: str | Path) -> Machine:
        """Reads what save() wrote. Raises ValueError, naming the file and what is wrong with it."""
        try:
            content = json.loads(Path(path).read_text())
            updates = {str(name): float(s) for name, s in content.pop("updates", {}).items()}
            plain = {str(name): float(value) for name, value in content.items()}
            return cls(**{**plain, "threads": int(plain.get("threads", 0))}, updates=updates)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"[{WHO}] {path} does not describe a machine: {error}; write one with "
                "`outboard plan --save-machine`"
            ) from error

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")


# Measured, for planning away from the machine.
KNOWN_MACHINES = {
    "h200": Machine(  # one H200, 16 cores of its host, PCIe 5
        link_down=55e9,
        link_up=55e9,
        link_duplex=44e9,
        host_bandwidth=140e9,
        device_bandwidth=4295e9,
        flops=550e12,
        threads=14,
        updates={
            "AdamW 8bit split": 0.115e-9,
            "AdamW 4bit split": 0.248e-9,
            "AdamW fp32 split": 0.23e-9,
        },
    )
}


@dataclass(frozen=True)
class PlanWish:
    """What is to be planned; all parameters are of one kind. `None`: no limit."""

    rule: str = "AdamW"
    state_format: str = "fp32"
    dtype: str = "bfloat16"
    master: str = "split"  # "weight" (fp32 weights), "split", "split8", "fp32", "stochastic"
    forward_s: float = 0.0  # of one micro-step
    backward_s: float = 0.0
    accumulation_steps: int = 1
    needs_norm: bool = True  # clipping, a loss scale, or skip_nonfinite
    redo_rate: float = 0.0  # share of steps in which clipping fires
    offload_gradients: bool = True
    is_attached: bool = True
    device_state_bytes: int = 0
    device_bytes: int | None = None
    host_bytes: int | None = None
    schedule: str = "auto"
    placement: str = "auto"

    def numbers(self) -> dict[str, float]:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {n: float(v) for n, v in values if not isinstance(v, str) and v is not None}

    def words(self) -> dict[str, str]:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {n: v for n, v in values if isinstance(v, str)}


@dataclass(frozen=True)
class Plan:
    """What the planner chose. Times in seconds, sizes in bytes; `bytes` by kind."""

    schedule: str
    bound: str  # "compute", "link", "host memory", "CPU"
    iteration_s: float
    compute_s: float
    exposed_s: float
    busy_s: dict[str, float]  # "link", "host_memory", "cpu", "device"
    elements: dict[str, int]  # by placement
    bytes: dict[str, int]
    host_bytes: int
    device_bytes: int
    is_speculative: bool
    fits: bool
    reasons: list[str]
    placements: list[str]  # per parameter

    @classmethod
    def from_native(
        cls,
        numbers: Mapping[str, float],
        words: Mapping[str, str],
        placements: Sequence[str],
        reasons: Sequence[str],
    ) -> Plan:
        kinds = ("resident", "host", "streamed")
        totals = ("host", "device")
        elements = {kind: int(numbers[f"{kind}_elements"]) for kind in kinds}
        named = {f"{k}_elements" for k in kinds} | {"device_s", *totals}
        sizes = {
            name: int(value)
            for name, value in numbers.items()
            if name.startswith(("host_", "device_")) and not name.endswith("_s")
        }
        return cls(
            schedule=words["schedule"],
            bound=words["bound"],
            iteration_s=numbers["iteration_s"],
            compute_s=numbers["compute_s"],
            exposed_s=numbers["exposed_s"],
            busy_s={k: numbers[f"{k}_s"] for k in ("link", "host_memory", "cpu", "device")},
            elements=elements,
            bytes={name: size for name, size in sizes.items() if name not in named},
            host_bytes=int(numbers["host"]),
            device_bytes=int(numbers["device"]),
            is_speculative=bool(numbers["is_speculative"]),
            fits=bool(numbers["fits"]),
            reasons=list(reasons),
            placements=list(placements),
        )


def make_plan(
    elements: Sequence[int],
    machine: Machine,
    wish: PlanWish,
    placements: Sequence[str] | None = None,
) -> Plan:
    """The best plan for parameters of these many elements, in the order of first use.

    With `placements`, one for each: what the plan with these and the wish's schedule takes and
    holds, good or bad. Raises ValueError for unknown words, negative times and machines without
    bandwidths.
    """
    numbers, words, chosen, reasons = torch.ops.outboard.plan(
        list(elements), wish.numbers(), wish.words(), machine.numbers(), list(placements or ())
    )
    return Plan.from_native(dict(numbers), dict(words), chosen, reasons)


def alternatives(elements: Sequence[int], machine: Machine, wish: PlanWish) -> list[Plan]:
    """One plan for each schedule with everything on the host, streamed, and the best mixture."""
    return [
        make_plan(elements, machine, replace(wish, schedule=schedule, placement=placement))
        for schedule in (SCHEDULES if wish.schedule == "auto" else (wish.schedule,))
        for placement in (*PLACEMENTS, "auto")
        if wish.placement in ("auto", placement)
    ]


def corrected(
    elements: Sequence[int],
    machine: Machine,
    wish: PlanWish,
    measured: Mapping[str, float],
    placements: Sequence[str] | None = None,
) -> tuple[Machine, PlanWish]:
    """A machine and a wish with which the model gives the measured iteration.

    It was measured with `placements` and the wish's schedule, else with the wish's best plan.
    `measured` has "iteration_s" and, where known, "forward_backward_s" and "update_s" (of the CPU
    kernels).
    """
    numbers, forward_s, backward_s = torch.ops.outboard.corrected_machine(
        list(elements),
        wish.numbers(),
        wish.words(),
        machine.numbers(),
        list(placements or ()),
        dict(measured),
    )
    better = replace(wish, forward_s=forward_s, backward_s=backward_s)
    return Machine.from_numbers(dict(numbers)), better


@functools.cache
def measured_machine(
    device: int | None = None,
    *,
    rule: str = "AdamW",
    state_formats: tuple[str, ...] = ("fp32", "8bit"),
    dtype: str = "bfloat16",
    master: str = "split",
    threads: int = 0,
    simulate: tuple[int, ...] = (),
) -> Machine:
    """Measures this machine with CUDA device `device` (None: host only), once per process.

    Takes up to 2 seconds and some 0.7 GiB; what else runs meanwhile makes the figures worse.
    """
    numbers = dict(
        torch.ops.outboard.measure_machine(
            -1 if device is None else device,
            list(simulate),
            threads,
            rule,
            list(state_formats),
            dtype,
            master,
        )
    )
    if device is not None:
        numbers["flops"] = _MODEL_EFFICIENCY * _matmul_flops(device)
    return Machine.from_numbers(numbers)


def _matmul_flops(device: int) -> float:
    """Operations per second of a large bf16 matrix product on a CUDA device."""
    size, repeats = 8192, 6
    a = torch.randn(size, size, device=f"cuda:{device}", dtype=torch.bfloat16)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    with torch.cuda.device(device):
        torch.mm(a, a)
        events[0].record()
        for _ in range(repeats):
            torch.mm(a, a)
        events[1].record()
        events[1].synchronize()
    return repeats * 2 * size**3 / (events[0].elapsed_time(events[1]) * 1e-3)


def compute_time(
    parameters: float, tokens: float, flops: float, is_recomputed: bool = True
) -> tuple[float, float]:
    """Seconds of forward and backward, by counting operations."""
    forward, backward = torch.ops.outboard.compute_time(parameters, tokens, flops, is_recomputed)
    return forward, backward


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it; placements are left to `elements`."""
    return {name: item for name, item in asdict(value).items() if name != "placements"}
