"""What the optimizer reports about its memory and its last step. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class MemoryStats:
    """Bytes held, by kind."""

    host_weights: int = 0  # host images of device weights
    host_masters: int = 0  # what split masters add, and fp32 masters
    host_state: int = 0
    host_gradients: int = 0
    host_accumulators: int = 0  # fp32 sums over micro-batches
    host_staging: int = 0
    host_spare: int = 0  # kept for other formats and placements of the same parameters
    host_pinned: int = 0  # how much of the above is registered with the device
    device_state: int = 0  # state and masters of resident parameters
    device_workspace: int = 0

    @property
    def host(self) -> int:
        """All host bytes."""
        kinds = ("weights", "masters", "state", "gradients", "accumulators", "staging", "spare")
        return sum(getattr(self, f"host_{kind}") for kind in kinds)

    @property
    def device(self) -> int:
        """All device bytes."""
        return self.device_state + self.device_workspace


@dataclass(frozen=True)
class StepStats:
    """Seconds of the last step, and counters."""

    waiting_for_gradients: float = 0.0
    updating: float = 0.0
    returning: float = 0.0
    exposed: float = 0.0  # device time in which forward waited for weights
    in_step: float = 0.0  # host time inside step()
    gradient_norm: float = 0.0  # of the unscaled gradient; 0 when nothing asked for it
    clip_factor: float = 1.0
    steps: int = 0
    skipped_steps: int = 0
    early_updates: int = 0  # parameters updated in backward, in all
    dropped_updates: int = 0  # of these, how many were dropped and made again
    resent_gradients: int = 0


@dataclass(frozen=True)
class PlanStats:
    """What the planner promised of an iteration with the placements in use, and what it took.

    Seconds; 0: not measured, or not yet.
    """

    predicted_s: float = 0.0
    measured_s: float = 0.0
    exposed_s: float = 0.0  # of the measured iteration
    corrections: int = 0  # how often placements, or the schedule, were changed
    reason: str = ""  # what was done about it, or why nothing is

    @property
    def error(self) -> float:
        """How far off the prediction was, as a share of the measurement; 0: not measured."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s > 0 else 0.0


@dataclass(frozen=True)
class Stats:
    """Memory, the last step, and how many elements each placement holds."""

    memory: MemoryStats
    step: StepStats
    elements: dict[str, int] = field(default_factory=dict)  # "host", "streamed", "resident", "cpu"
    schedule: str = "at_step"
    reason: str = ""  # why this schedule
    plan: PlanStats = field(default_factory=PlanStats)

    @classmethod
    def from_flat(
        cls, flat: Mapping[str, float], elements: dict[str, int], schedule: str, reason: str
    ) -> Stats:
        """Sorts the native library's flat values into their places."""

        def fill(part):
            kinds = {f.name: type(f.default) for f in fields(part)}
            return part(**{name: kind(flat[name]) for name, kind in kinds.items() if name in flat})

        return cls(fill(MemoryStats), fill(StepStats), elements, schedule, reason)
