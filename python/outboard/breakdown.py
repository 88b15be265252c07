"""Where the time of traced steps went: what each lane did, and what of it the device waited for.

Plain arithmetic on intervals. No files and no pictures here; those are timeline.py's and
cli_timeline.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# The lanes that the engine records, from the top of the picture down.
COMPUTE = "compute"  # what the caller's stream does: forward, backward, and the step between them
EXPOSED = "exposed"  # when that stream stood still for the optimizer
CAUSES = (  # what it can have stood still for
    "gradients down",
    "host update",
    "device update",
    "state up",
    "state down",
    "weights up",
)
BACKWARD = "backward"  # while gradients are handed over
WAITS = "waits"  # the host's; they hold nothing up by themselves
STEPS = "steps"  # one span for each traced step
STEP_GAP = "step"  # the compute lane's span from the end of backward to the end of the step
OTHER = "other"  # exposed while no cause was at work: hand-offs, launches


class Span(NamedTuple):
    """One piece of work. Seconds since the trace began; `bytes` 0: not said."""

    lane: str
    name: str
    begin: float
    end: float
    bytes: int = 0


Interval = tuple[float, float]


@dataclass(frozen=True)
class LaneTime:
    """Seconds of one lane within a step."""

    busy: float = 0.0  # at work, however many pieces at once
    hidden: float = 0.0  # of these, while the device computed
    exposed: float = 0.0  # its share of the time that the device stood still; see StepTime
    bytes: int = 0

    @property
    def gb_per_s(self) -> float:
        """What it moved by the time it was busy; 0 if no bytes are known."""
        return self.bytes / self.busy * 1e-9 if self.busy > 0 else 0.0


@dataclass(frozen=True)
class StepTime:
    """One traced step. Exposed time is shared, at every instant, evenly by the lanes at work then,
    so that the lanes' shares and `other` add up to `exposed`: the lane that is never idle, the
    bottleneck, gets most of it."""

    number: int  # within the trace, from 1
    begin: float
    end: float
    exposed: float  # seconds that the device stood still for the optimizer
    other: float  # of these, while no lane was at work
    lanes: dict[str, LaneTime] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def exposed_text(self) -> str:
        """ "step 2: 743.1 ms, exposed 15.2 (weights up 9.1, host update 6.1)"."""
        causes = {lane: time.exposed for lane, time in self.lanes.items()} | {OTHER: self.other}
        return (
            f"step {self.number}: {_ms(self.seconds)} ms, exposed {_ms(self.exposed)}"
            f"{_listed(causes, '')}"
        )

    def __str__(self) -> str:
        """One line: exposed_text(), and the milliseconds of work that were hidden."""
        hidden = {lane: time.hidden for lane, time in self.lanes.items()}
        return f"{self.exposed_text()}, hidden{_listed(hidden, ' nothing')}"


def step_times(spans: Iterable[Span]) -> list[StepTime]:
    """The breakdown of each step that has a span in the lane `steps`, in order."""
    spans = list(spans)
    steps = sorted((s for s in spans if s.lane == STEPS), key=lambda s: s.begin)
    exposed = exposed_intervals(spans)
    lanes = {lane: [s for s in spans if s.lane == lane] for lane in CAUSES}
    return [
        _step_time(number, (step.begin, step.end), exposed, lanes)
        for number, step in enumerate(steps, 1)
    ]


def exposed_intervals(spans: Iterable[Span]) -> list[Interval]:
    """When the device stood still for the optimizer: the lane `exposed`, or, without one, the gaps
    between backward and the next forward."""
    spans = list(spans)
    said = [s for s in spans if s.lane == EXPOSED]
    found = said or [s for s in spans if s.lane == COMPUTE and s.name == STEP_GAP]
    return union((s.begin, s.end) for s in found)


def caller_spans(
    spans: Iterable[Span], begins: Sequence[float], ends: Sequence[float]
) -> list[Span]:
    """The lane `steps`, and the lane `compute` if `spans` has none, of steps that the caller's
    stream, or without one the caller, began and ended at these times.

    Step k lasts from the end of step k - 1, the first from 0. The lane `backward`, if the engine
    recorded one, divides what lies before a step.
    """
    spans = list(spans)
    backward = union((s.begin, s.end) for s in spans if s.lane == BACKWARD)
    made: list[Span] = []
    last = 0.0
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True), 1):
        made.append(Span(STEPS, f"step {number}", last, end))
        made += _before_step(clip(backward, (last, begin)), last, begin)
        made.append(Span(COMPUTE, STEP_GAP, begin, end))
        last = end
    has_compute = any(s.lane == COMPUTE for s in spans)
    return [s for s in made if s.lane == STEPS] if has_compute else made


def _before_step(backward: list[Interval], begin: float, end: float) -> list[Span]:
    if not backward:
        return [Span(COMPUTE, "forward and backward", begin, end)]
    made = []
    for first, last in backward:
        made.append(Span(COMPUTE, "forward", begin, first))
        made.append(Span(COMPUTE, "backward", first, last))
        begin = last
    # A gradient may be handed over a little before backward ends.
    return [*made[:-1], made[-1]._replace(end=end)]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points as disjoint intervals in order; empty ones vanish."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def clip(intervals: Iterable[Interval], window: Interval) -> list[Interval]:
    """What of them lies in the window."""
    clipped = ((max(begin, window[0]), min(end, window[1])) for begin, end in intervals)
    return [(begin, end) for begin, end in clipped if end > begin]


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)


def _step_time(
    number: int, window: Interval, exposed: list[Interval], lanes: dict[str, list[Span]]
) -> StepTime:
    exposed = clip(exposed, window)
    busy = {
        lane: found
        for lane, spans in lanes.items()
        if (found := clip(union((s.begin, s.end) for s in spans), window))
    }
    shares, alone, other = _shares(exposed, busy)
    times = {
        lane: LaneTime(
            busy=length(found),
            hidden=max(0.0, length(found) - alone[lane]),
            exposed=shares[lane],
            bytes=_bytes_within(lanes[lane], window),
        )
        for lane, found in busy.items()
    }
    return StepTime(number, *window, length(exposed), other, times)


def _shares(
    exposed: list[Interval], busy: dict[str, list[Interval]]
) -> tuple[dict[str, float], dict[str, float], float]:
    """Per lane: its even share of the exposed time, and all of the exposed time that it was at
    work; and the exposed time without a lane at work."""
    changes = [(time, EXPOSED, by) for i in exposed for time, by in zip(i, (1, -1), strict=True)]
    for lane, intervals in busy.items():
        changes += [
            (time, lane, by) for i in intervals for time, by in zip(i, (1, -1), strict=True)
        ]
    shares, whole, other = dict.fromkeys(busy, 0.0), dict.fromkeys(busy, 0.0), 0.0
    active = dict.fromkeys([EXPOSED, *busy], 0)
    before = 0.0
    for time, lane, by in sorted(changes):
        if active[EXPOSED]:
            working = [other_lane for other_lane in busy if active[other_lane]]
            for other_lane in working:
                shares[other_lane] += (time - before) / len(working)
                whole[other_lane] += time - before
            if not working:
                other += time - before
        active[lane] += by
        before = time
    return shares, whole, other


def _bytes_within(spans: list[Span], window: Interval) -> int:
    """Bytes of pieces that cross the window's edge count by the part of their time inside."""
    total = 0.0
    for span in spans:
        inside = length(clip([(span.begin, span.end)], window))
        if inside > 0:
            total += span.bytes * inside / (span.end - span.begin)
    return round(total)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _listed(seconds: dict[str, float], nothing: str) -> str:
    """The largest first; what rounds to nothing is left out."""
    named = sorted(((s, name) for name, s in seconds.items() if s >= 5e-5), reverse=True)
    return f" ({', '.join(f'{name} {_ms(s)}' for s, name in named)})" if named else nothing
