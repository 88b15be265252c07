"""The options of the optimizers themselves: checked, then handed to the native engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from . import _formats
from ._placement import checked_placements, places_of
from .hyper import WHO

SCHEDULES = ("auto", "at_step", "next_forward", "in_backward")
MASTERS = ("auto", "split", "split8", "fp32", "stochastic", "none")
DEFAULT_CHUNK_ELEMENTS = 16 << 20


@dataclass(frozen=True)
class EngineOptions:
    """What both optimizers have. Checked at construction; meanings are in their docstrings."""

    master: str = "auto"
    state_format: str = "fp32"
    block_size: int | None = None
    min_quantized_elements: int = 4096
    state_formats: Mapping[Any, Any] | None = None
    max_grad_norm: float | None = None
    skip_nonfinite: bool = True
    threads: int | None = None
    seed: int = 0
    fused_amp: bool = False
    factored_second_moment: bool = False
    simulate: Sequence[int] | None = None

    # Steps of CUDA graphs; see LowBitOptions.
    capturable = False

    def __post_init__(self):
        for name in ("skip_nonfinite", "fused_amp", "factored_second_moment"):
            self._check_flag(name)
        for name, least, optional in (
            ("min_quantized_elements", 0, False),
            ("seed", 0, False),
            ("threads", 1, True),
        ):
            self._check_integer(name, least, optional)
        self.checked_format(self.state_format, self.block_size)
        check_master(self.master)
        object.__setattr__(self, "format_wishes", _formats.checked_wishes(self.state_formats))
        if self.max_grad_norm is not None:
            check_max_norm("max_grad_norm", self.max_grad_norm)
        if self.simulate is not None and len(self.simulate) != 3:
            raise ValueError(
                f"[{WHO}] simulate is {self.simulate!r}; give [seed, delay in "
                "microseconds, 0 or 1 to poison stale memory]"
            )

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [f.name for f in fields(cls)]

    @property
    def needs_norm(self) -> bool:
        """Whether every step waits for all gradients before it changes anything."""
        return self.skip_nonfinite or self.max_grad_norm is not None

    def make_engine(self) -> Any:
        """A native engine with these options and no parameters."""
        return self._make_engine(False, True, DEFAULT_CHUNK_ELEMENTS)

    def places_of(
        self,
        named: Sequence[tuple[torch.Tensor, str]],
        rules: Sequence[str],
        master: str,
        formats: Sequence[_formats.FormatWish],
    ) -> list[str]:
        """Where the state of each parameter on a device is: "host", "streamed" or "resident"."""
        return ["resident"] * len(named)

    def format_of(
        self, parameter: torch.Tensor, name: str, group: Mapping[str, Any]
    ) -> _formats.FormatWish:
        """How the parameter's state is stored: by name, else as its group says, else as usual."""
        for wish, chosen in self.format_wishes:
            if _formats.fits(wish, parameter, name):
                return chosen
        return self.checked_format(
            group.get("state_format", self.state_format), group.get("block_size", self.block_size)
        )

    def check_wishes(self, named: list[tuple[torch.Tensor, str]]) -> None:
        """Raises ValueError if something that names parameters fits none."""
        _formats.check_all_fit("state_formats", [w for w, _ in self.format_wishes], named)

    @staticmethod
    def checked_format(name: Any, block_size: Any) -> _formats.FormatWish:
        """Raises TypeError or ValueError for what is no format."""
        return _formats.checked(name, block_size)

    def _make_engine(
        self,
        offload_gradients: bool,
        pin_memory: bool,
        chunk_elements: int,
        poison_in_flight: bool = False,
    ) -> Any:
        return torch.classes.outboard.TensorEngine(
            offload_gradients,
            self.skip_nonfinite,
            self.threads or 0,
            pin_memory,
            self.seed,
            chunk_elements,
            poison_in_flight,
            [int(value) for value in self.simulate or ()],
        )

    def _check_flag(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise TypeError(f"[{WHO}] {name} is {getattr(self, name)!r}; give True or False")

    def _check_integer(self, name: str, least: int, optional: bool) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"[{WHO}] {name} is {value!r}; give an integer")
        if not least <= value < 2**63:
            raise ValueError(f"[{WHO}] {name} is {value}; give at least {least}")


@dataclass(frozen=True)
class LowBitOptions(EngineOptions):
    """The options of LowBitOptimizer."""

    state_format: str = "8bit"
    skip_nonfinite: bool = False
    capturable: bool = False

    offload_gradients = False

    def __post_init__(self):
        super().__post_init__()
        self._check_flag("capturable")
        host_side = {
            "max_grad_norm": self.max_grad_norm is not None,
            "skip_nonfinite": self.skip_nonfinite,
            "fused_amp": self.fused_amp,
        }
        for name in (name for name, is_set in host_side.items() if is_set and self.capturable):
            raise ValueError(
                f"[{WHO}] {name} with capturable=True cannot be honoured: the host decides about "
                "it; clip inside the graph with torch.nn.utils.clip_grad_norm_, and unscale "
                "gradients before step()"
            )

    def make_engine(self) -> Any:
        """A native engine with these options and no parameters."""
        engine = super().make_engine()
        if self.capturable:
            engine.make_capturable()
        return engine


@dataclass(frozen=True)
class OffloadOptions(EngineOptions):
    """The options of CPUOffloadOptimizer."""

    offload_gradients: bool = False
    min_offload_elements: int = 4096
    pin_memory: bool = True
    resident: Sequence[Any] = field(default=())
    placement: str | Mapping[Any, str] = "auto"
    schedule: str = "auto"
    accumulation_steps: int | None = None
    machine: Any = None
    device_state_bytes: int = 0
    host_bytes: int | None = None
    chunk_elements: int | None = None
    poison_in_flight: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("offload_gradients", "pin_memory", "poison_in_flight"):
            self._check_flag(name)
        self._check_integer("min_offload_elements", 0, False)
        self._check_integer("chunk_elements", 1, True)
        self._check_integer("accumulation_steps", 1, True)
        self._check_integer("device_state_bytes", 0, False)
        self._check_integer("host_bytes", 0, True)
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"[{WHO}] schedule is {self.schedule!r}; give one of {list(SCHEDULES)}"
            )
        object.__setattr__(self, "placement_wishes", checked_placements(self.placement))
        wanted = self.resident
        if isinstance(wanted, (str, torch.Tensor)):
            wanted = (wanted,)
        object.__setattr__(self, "resident", tuple(wanted))
        for item in self.resident:
            if not isinstance(item, (str, torch.Tensor)):
                raise TypeError(
                    f"[{WHO}] resident holds {item!r}; give parameters, names or name patterns"
                )

    def make_engine(self) -> Any:
        """A native engine with these options and no parameters."""
        engine = self._make_engine(
            self.offload_gradients,
            self.pin_memory,
            self.chunk_elements or DEFAULT_CHUNK_ELEMENTS,
            self.poison_in_flight,
        )
        engine.set_accumulation_steps(self.accumulation_steps or 0)
        return engine

    def places_of(
        self,
        named: Sequence[tuple[torch.Tensor, str]],
        rules: Sequence[str],
        master: str,
        formats: Sequence[_formats.FormatWish],
    ) -> list[str]:
        """Where the state of each parameter on a device is: "host", "streamed" or "resident"."""
        return places_of(self, named, rules, master, formats)

    def check_wishes(self, named: list[tuple[torch.Tensor, str]]) -> None:
        """Raises ValueError if something that names parameters fits none."""
        super().check_wishes(named)
        _formats.check_all_fit("resident", self.resident, named)
        wishes = [wish for wish, _ in self.placement_wishes if wish is not None]
        _formats.check_all_fit("placement", wishes, named)


def check_master(master: str) -> None:
    """Raises ValueError for names that do not exist."""
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
