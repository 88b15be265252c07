"""The options of CPUOffloadOptimizer itself: checked, then handed to the native engine."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from .hyper import WHO

MASTERS = ("auto", "split", "fp32", "stochastic", "none")
DEFAULT_CHUNK_ELEMENTS = 16 << 20


@dataclass(frozen=True)
class OffloadOptions:
    """Checked at construction; meanings are in CPUOffloadOptimizer's docstring."""

    offload_gradients: bool = False
    min_offload_elements: int = 4096
    master: str = "auto"
    state_format: str = "fp32"
    max_grad_norm: float | None = None
    skip_nonfinite: bool = True
    threads: int | None = None
    pin_memory: bool = True
    seed: int = 0
    resident: Sequence[Any] = field(default=())
    fused_amp: bool = False
    chunk_elements: int | None = None
    simulate: Sequence[int] | None = None

    def __post_init__(self):
        for name in ("offload_gradients", "skip_nonfinite", "pin_memory", "fused_amp"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"[{WHO}] {name} is {getattr(self, name)!r}; give True or False")
        for name, least, optional in (
            ("min_offload_elements", 0, False),
            ("seed", 0, False),
            ("threads", 1, True),
            ("chunk_elements", 1, True),
        ):
            self._check_integer(name, least, optional)
        check_format(self.state_format, self.master)
        if self.max_grad_norm is not None:
            check_max_norm("max_grad_norm", self.max_grad_norm)
        wanted = self.resident
        if isinstance(wanted, (str, torch.Tensor)):
            wanted = (wanted,)
        object.__setattr__(self, "resident", tuple(wanted))
        for item in self.resident:
            if not isinstance(item, (str, torch.Tensor)):
                raise TypeError(
                    f"[{WHO}] resident holds {item!r}; give parameters, names or name patterns"
                )
        if self.simulate is not None and len(self.simulate) != 3:
            raise ValueError(
                f"[{WHO}] simulate is {self.simulate!r}; give [seed, delay in "
                "microseconds, 0 or 1 to poison stale memory]"
            )

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [f.name for f in fields(cls)]

    def make_engine(self) -> Any:
        """A native engine with these options and no parameters."""
        return torch.classes.outboard.TensorEngine(
            self.offload_gradients,
            self.skip_nonfinite,
            self.threads or 0,
            self.pin_memory,
            self.seed,
            self.chunk_elements or DEFAULT_CHUNK_ELEMENTS,
            [int(value) for value in self.simulate or ()],
        )

    def is_resident(self, parameter: torch.Tensor, name: str) -> bool:
        """Whether the parameter's state stays on its device."""
        return parameter.numel() < self.min_offload_elements or any(
            _matches(wish, parameter, name) for wish in self.resident
        )

    def check_resident(self, named: Iterable[tuple[torch.Tensor, str]]) -> None:
        """Raises ValueError if an item of `resident` fits none of the parameters."""
        named = list(named)
        for wish in self.resident:
            if not any(_matches(wish, parameter, name) for parameter, name in named):
                shown = repr(wish) if isinstance(wish, str) else f"a tensor of {tuple(wish.shape)}"
                raise ValueError(
                    f"[{WHO}] resident holds {shown}, which fits none of {len(named)} parameters; "
                    "names are known only if model.named_parameters() was given"
                )

    def _check_integer(self, name: str, least: int, optional: bool) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"[{WHO}] {name} is {value!r}; give an integer")
        if not least <= value < 2**63:
            raise ValueError(f"[{WHO}] {name} is {value}; give at least {least}")


def check_format(state_format: str, master: str) -> None:
    """Raises ValueError for names that do not exist."""
    formats = torch.ops.outboard.state_formats()
    if state_format not in formats:
        raise ValueError(f"[{WHO}] state_format is {state_format!r}; give one of {formats}")
    if master not in MASTERS:
        raise ValueError(f"[{WHO}] master is {master!r}; give one of {list(MASTERS)}")


def check_max_norm(name: str, value: float) -> float:
    """`value` as what the engine takes: a positive number, 0 for no clipping (an infinite one)."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"[{WHO}] {name} is {value!r}; give a positive number") from error
    if not number > 0:
        raise ValueError(f"[{WHO}] {name} is {number}; give a positive number, or none at all")
    return 0.0 if math.isinf(number) else number


def _matches(wish: str | torch.Tensor, parameter: torch.Tensor, name: str) -> bool:
    return fnmatch.fnmatchcase(name, wish) if isinstance(wish, str) else wish is parameter
