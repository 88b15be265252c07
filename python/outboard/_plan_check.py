"""Checks in training what the planner promised, and says what to do if it was wrong.

A few iterations are timed on the wall, beside what the engine counts anyway: nothing is
synchronised for it. Decides; the optimizer moves parameters. The cost model is native
(docs/planning.md).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ._placement import has_machine, machine_of, may_plan, wish_of
from .stats import PlanStats

if TYPE_CHECKING:
    from ._options import OffloadOptions
    from ._registry import Registry
    from .plan import Machine, Plan, PlanWish

WARM_STEPS = 3  # pages are touched, second copies are made, forwards are watched
MEASURED_STEPS = 5
MOST_CORRECTIONS = 2
LEAST_GAIN = 0.05  # of an iteration: a move costs one, and measurements are not better than that
# A plan that was left is gone back to if it was faster by this share.
LEAST_LOSS = 0.01
# The model is good enough if it is not farther off than this, and is else corrected again.
MOST_ERROR = 0.05
# Forward of forward and backward: backward takes twice as long where nothing is recomputed.
FORWARD_SHARE = 1 / 3
LEAST_ELEMENTS = 4096  # below it, nothing that is worth a move


@dataclass(frozen=True)
class Choice:
    """Where parameters should go, by the engine's index, and the schedule that goes with it."""

    placements: dict[int, str]
    schedule: str
    ring_bytes: int = 0  # on the device, beside what there is


@dataclass(frozen=True)
class Sample:
    """One iteration."""

    seconds: float
    exposed: float
    updating: float
    needs_norm: bool
    is_redone: bool
    forwards: int


class PlanCheck:
    """From attach() on: warm up, measure, correct the model, plan again; twice at most, and if the
    last plan turned out slower than an earlier one, back to that. Then it is over."""

    def __init__(self, options: OffloadOptions, registry: Registry, engine: Any):
        self.report = PlanStats()
        self._options = options
        self._registry = registry
        self._stats = engine.stats
        self._placement = engine.placement
        self._master_format = engine.master_format
        self._is_on = False
        self._is_over = options.placement != "auto"
        self._rounds = 0
        self._promised = 0.0
        self._fastest: tuple[PlanStats, Choice] | None = None  # of those that were left
        self._machine: Machine | None = None
        self._begin()

    def _begin(self) -> None:
        self._left = WARM_STEPS
        self._samples: list[Sample] = []
        self._forwards = 0
        self._count = len(self._registry.parameters)
        self._last: float | None = None

    def start(self) -> None:
        """A model was attached, or parameters were moved: what was measured before is void."""
        self._is_on = not self._is_over and self._is_planner_asked()
        self._begin()

    def stop(self, reason: str = "") -> None:
        """Nothing is measured until start(). With a reason, for ever."""
        self._is_on = False
        if reason:
            self._is_over = True
            self.report = replace(self.report, reason=reason)
            logging.getLogger("outboard").info("plan: %s", reason)

    # ---- Measuring ------------------------------------------------------------------------------

    def forward(self) -> None:
        """A forward begins that may lead to a backward."""
        self._forwards += 1

    def before_step(self) -> None:
        """Looks at the iteration that is about to end. Its stats are those of the step before."""
        if self._is_on:
            self._flat = dict(self._stats())

    def after_step(self, schedule: str, is_free: bool) -> Choice | None:
        """What to do next, if anything. `is_free`: another schedule may be chosen, too."""
        if not self._is_on:
            return None
        if len(self._registry.parameters) != self._count:
            self.start()
        now, forwards = perf_counter(), self._forwards
        last, self._last, self._forwards = self._last, now, 0
        if last is None or forwards == 0:
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        flat = self._flat
        self._samples.append(
            Sample(
                seconds=now - last,
                exposed=flat["exposed"],
                updating=flat["updating"],
                needs_norm=flat["gradient_norm"] > 0,
                is_redone=flat["clip_factor"] < 1,
                forwards=forwards,
            )
        )
        if len(self._samples) < MEASURED_STEPS:
            return None
        self._is_on = False
        return self._decide(schedule, is_free)

    # ---- Deciding -------------------------------------------------------------------------------

    def _planned(self) -> list[int]:
        """What the planner may have a say in: not residents, which its budget has chosen."""
        return [
            index
            for index, parameter in enumerate(self._registry.parameters)
            if parameter.numel() >= LEAST_ELEMENTS
            and may_plan(self._options, self._registry.rules[index])
            and self._placement(index) in ("host", "streamed")
        ]

    def _is_planner_asked(self) -> bool:
        registry = self._registry
        return any(may_plan(self._options, rule) for rule in registry.rules) and has_machine(
            self._options, registry.parameters[0]
        )

    def _wish(self, planned: Sequence[int], schedule: str) -> PlanWish | str:
        """What was measured as the planner takes it, or why it cannot."""
        registry = self._registry
        kinds = {
            (
                registry.rules[i],
                registry.parameters[i].dtype,
                self._master_format(i),
                registry.formats[i].name,
            )
            for i in planned
        }
        if len(kinds) != 1:
            return f"{len(kinds)} kinds of parameters are offloaded; the planner compares one"
        rule, _, master, state_format = kinds.pop()
        first = registry.parameters[planned[0]]
        samples = self._samples
        wish = replace(
            wish_of(self._options, first, rule, master, state_format),
            schedule=schedule,
            accumulation_steps=self._options.accumulation_steps
            or round(median(s.forwards for s in samples)),
            redo_rate=sum(s.is_redone for s in samples) / len(samples),
        )
        wish = replace(wish, needs_norm=wish.needs_norm or any(s.needs_norm for s in samples))
        self._machine = self._machine or machine_of(self._options, first, wish)
        return wish

    def _decide(self, schedule: str, is_free: bool) -> Choice | None:
        from . import plan

        planned = self._planned()
        wish = self._wish(planned, schedule)
        if isinstance(wish, str):
            self.stop(wish)
            return None
        elements = [self._registry.parameters[i].numel() for i in planned]
        places = [self._placement(i) for i in planned]
        measured = self._measured(plan.make_plan(elements, self._machine, wish, places))
        micro = measured["forward_backward_s"] / wish.accumulation_steps
        wish = replace(
            wish, forward_s=micro * FORWARD_SHARE, backward_s=micro * (1 - FORWARD_SHARE)
        )
        promised = plan.make_plan(elements, self._machine, wish, places).iteration_s
        self._note(self._promised or promised, measured)
        self._machine, wish = plan.corrected(elements, self._machine, wish, measured, places)
        here = plan.make_plan(elements, self._machine, wish, places)
        better = plan.make_plan(
            elements, self._machine, replace(wish, schedule="auto" if is_free else schedule)
        )
        now = Choice(dict(zip(planned, places, strict=True)), schedule)
        return self._chosen(now, here, better, planned)

    def _measured(self, now: Plan) -> dict[str, float]:
        seconds = median(s.seconds for s in self._samples)
        exposed = min(median(s.exposed for s in self._samples), 0.95 * seconds)
        # What is neither waited for nor an update on the device is forward and backward.
        computed = max(seconds - exposed - now.busy_s["device"], 0.05 * seconds)
        return {
            "iteration_s": seconds,
            "exposed_s": exposed,
            "forward_backward_s": computed,
            "update_s": median(s.updating for s in self._samples),
        }

    def _note(self, promised: float, measured: dict[str, float]) -> None:
        self.report = replace(
            self.report,
            predicted_s=promised,
            measured_s=measured["iteration_s"],
            exposed_s=measured.pop("exposed_s"),
        )

    def _chosen(
        self, now: Choice, here: Plan, better: Plan, planned: Sequence[int]
    ) -> Choice | None:
        took = self.report.measured_s
        text = (
            f"an iteration takes {1e3 * took:.3g} ms, {1e3 * self.report.predicted_s:.3g} ms were "
            "predicted"
        )
        if self._fastest is not None and took > self._fastest[0].measured_s * (1 + LEAST_LOSS):
            faster, choice = self._fastest
            self.report = replace(faster, corrections=self.report.corrections)
            self.stop(f"{text}; back to the placements with {1e3 * faster.measured_s:.3g} ms")
            return choice
        self._rounds += 1
        gain = 1 - better.iteration_s / min(took, here.iteration_s)
        chosen = dict(zip(planned, better.placements, strict=True))
        is_last = self._rounds > MOST_CORRECTIONS
        is_other = (chosen, better.schedule) != (now.placements, now.schedule)
        if gain >= LEAST_GAIN and better.fits and is_other and not is_last:
            self._fastest = (self.report, now)
            self._promised = better.iteration_s
            streamed = better.elements["streamed"] / max(sum(better.elements.values()), 1)
            logging.getLogger("outboard").info(
                "plan: %s; %.0f %% of the elements are streamed from now on, %.3g ms are predicted",
                *(text, 100 * streamed, 1e3 * better.iteration_s),
            )
            self.report = replace(
                self.report, reason=f"{text}; moved for {1e3 * better.iteration_s:.3g} ms"
            )
            ring = better.bytes["device_ring"] - here.bytes["device_ring"]
            return Choice(chosen, better.schedule, max(ring, 0))
        if abs(here.iteration_s / took - 1) > MOST_ERROR and not is_last:
            self._promised = here.iteration_s
            self.start()  # farther off than one correction may reach
            return None
        self.stop(f"{text}; no plan is better by {100 * LEAST_GAIN:.0f} %")
        return None

    def moved(self) -> None:
        """The choice was followed."""
        self.report = replace(self.report, corrections=self.report.corrections + 1)
        self.start()
