"""A picture of a timeline for people without a browser: one bar per lane, exposed time in red.

Draws with matplotlib, which is imported when a picture is wished and comes with `outboard[cli]`.
No arithmetic on steps here; that is breakdown.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .breakdown import (
    COMPUTE,
    EXPOSED,
    STEPS,
    Span,
    StepTime,
    clip,
    exposed_intervals,
    length,
    union,
)
from .timeline import Timeline

# Okabe and Ito's palette: told apart by colour-blind people too, and in grey.
_COLOURS = {
    "forward and backward": "#5a9bd0",
    "forward": "#9fc9e8",
    "backward": "#0072b2",
    "step": "#c8c8c8",
    "gradients down": "#009e73",
    "weights up": "#e69f00",
    "state up": "#f0c75e",
    "state down": "#66c2a5",
    "device update": "#7a5ba6",
    "host update": "#cc79a7",
    "waits": "#8c8c8c",
    EXPOSED: "#d62728",
}
_OTHER_COLOUR = "#555555"
_ROW, _BAR = 1.0, 0.72  # heights in axis units
_MAX_NAMES = 400  # names of spans that are written into bars
_CHARACTER = 0.0062  # width of a letter of a bar's name, as a part of the axis
_THINNEST = 0.0009  # width of the thinnest bar, as a part of the axis: about a pixel
_INSTALL = "[outboard timeline] drawing needs matplotlib; pip install 'outboard[cli]'"


def draw(content: Timeline, times: list[StepTime], path: str | os.PathLike) -> None:
    """Draws the time from the first to the last of `times`, or everything if there are none.

    The suffix of `path` says the kind of picture. Raises ImportError without matplotlib, ValueError
    for another suffix or an empty trace, OSError if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    kinds = Figure().canvas.get_supported_filetypes()
    kind = Path(path).suffix[1:].lower()
    if kind not in kinds:
        raise ValueError(
            f"[outboard timeline] {path} ends in none of the known kinds; give a .png, .pdf or .svg"
        )
    spans, window = _within(content, times)
    shown = replace(content, spans=spans)
    lanes = [lane for lane in shown.lanes() if lane != STEPS]
    figure = Figure(figsize=(14, 2.3 + 0.52 * len(lanes) + 0.2 * min(len(times), 6)), dpi=120)
    axes = figure.add_axes(_frame(figure, len(times)))
    _draw_steps(axes, times)
    _draw_exposed(axes, shown, window)
    for row, lane in enumerate(lanes):
        _draw_lane(axes, lane, [s for s in spans if s.lane == lane], row, window)
        _annotate(axes, lane, [s for s in spans if s.lane == lane], row, times)
    _finish_axes(axes, lanes, window)
    _add_texts(figure, axes, shown, times)
    figure.savefig(path, format=kind)


def _within(content: Timeline, times: list[StepTime]) -> tuple[list[Span], tuple[float, float]]:
    """The spans that reach into the steps, clipped to them, and the steps' time."""
    if not content.spans:
        raise ValueError("[outboard timeline] the trace is empty; trace at least one step")
    begin = times[0].begin if times else min(s.begin for s in content.spans)
    end = times[-1].end if times else max(s.end for s in content.spans)
    kept = []
    for span in content.spans:
        inside = clip([(span.begin, span.end)], (begin, end))
        if length(inside) > 2e-9:  # less is a neighbour's, rounded to whole nanoseconds
            kept.append(_cut(span, inside[0]))
    if not kept:
        raise ValueError("[outboard timeline] the trace has no work; trace at least one step")
    return kept, (begin, end)


def _cut(span: Span, interval: tuple[float, float]) -> Span:
    begin, end = interval
    part = (end - begin) / (span.end - span.begin)
    return span._replace(begin=begin, end=end, bytes=round(span.bytes * part))


def _frame(figure: Any, steps: int) -> tuple[float, float, float, float]:
    """The axes' place: fixed inches for title, legend and sentences around it."""
    width, height = figure.get_size_inches()
    below = 0.95 + 0.2 * min(steps, 6)
    return (1.35 / width, below / height, 1 - 3.25 / width, 1 - (below + 0.75) / height)


def _draw_steps(axes: Any, times: list[StepTime]) -> None:
    for time in times:
        label = f"step {time.number}: {time.seconds * 1e3:.1f} ms"
        for edge in (time.begin, time.end):
            axes.axvline(edge * 1e3, color="black", linewidth=0.8, zorder=1)
        axes.text(
            (time.begin + time.end) * 500,
            -0.62,
            label if len(times) <= 6 else str(time.number),
            ha="center",
            va="bottom",
            fontsize=9,
        )


def _draw_exposed(axes: Any, shown: Timeline, window: tuple[float, float]) -> None:
    """A band through every lane, so that one sees what was at work meanwhile."""
    for begin, end in clip(exposed_intervals(shown.spans), window):
        axes.axvspan(begin * 1e3, end * 1e3, color=_COLOURS[EXPOSED], alpha=0.13, lw=0, zorder=0)


def _draw_lane(
    axes: Any, lane: str, spans: list[Span], row: int, window: tuple[float, float]
) -> None:
    """The bars; pieces that overlap in time share the row's height. Neighbours that are wide enough
    alternate between two shades: edges would hide bars that are a pixel wide. Exposed time has its
    true width: hundreds of waits of microseconds would look like one long one."""
    rows = _stacked(spans)
    thinnest = 0.0 if lane == EXPOSED else (window[1] - window[0]) * _THINNEST
    height = _BAR / len(rows)
    for number, stacked in enumerate(rows):
        colours = [_colour(lane, s.name) for s in stacked]
        widths = sorted(s.end - s.begin for s in stacked)
        if lane not in (COMPUTE, EXPOSED) and widths[len(widths) // 2] > 3 * thinnest:
            colours[1::2] = [_lighter(colour) for colour in colours[1::2]]
        axes.broken_barh(
            [(s.begin * 1e3, max(s.end - s.begin, thinnest) * 1e3) for s in stacked],
            (row - _BAR / 2 + number * height, height),
            facecolors=colours,
            linewidth=0,
            zorder=2,
        )
    if len(rows) == 1 and len(spans) <= _MAX_NAMES:
        for span in spans:
            _write_name(axes, lane, span, row, window)


def _write_name(axes: Any, lane: str, span: Span, row: int, window: tuple[float, float]) -> None:
    if (span.end - span.begin) / (window[1] - window[0]) < _CHARACTER * (len(span.name) + 1):
        return
    axes.text(
        (span.begin + span.end) * 500,
        row,
        span.name,
        ha="center",
        va="center",
        fontsize=7.5,
        color="white" if _is_dark(_colour(lane, span.name)) else "black",
        zorder=3,
    )


def _stacked(spans: list[Span]) -> list[list[Span]]:
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: s.begin):
        free = next((r for r in rows if r[-1].end <= span.begin + 1e-9), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return rows


def _annotate(axes: Any, lane: str, spans: list[Span], row: int, times: list[StepTime]) -> None:
    """Right of the lane, as a mean over the steps: how long it was at work, how much of the exposed
    time is its share, and how fast it copied."""
    steps = len(times) or 1
    busy = sum(end - begin for begin, end in union((s.begin, s.end) for s in spans))
    text = f"{busy / steps * 1e3:.1f} ms" + (" a step" if len(times) > 1 else "")
    shares = [time.lanes[lane].exposed for time in times if lane in time.lanes]
    if shares:
        text += f", {sum(shares) / steps * 1e3:.1f} exposed"
    moved = sum(s.bytes for s in spans)
    if moved and busy:
        text += f"\n{moved / steps * 1e-9:.2f} GB at {moved / busy * 1e-9:.1f} GB/s"
    axes.text(
        1.008,
        row,
        text,
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=8,
        color=_COLOURS[EXPOSED] if lane == EXPOSED else "#333333",
    )


def _finish_axes(axes: Any, lanes: list[str], window: tuple[float, float]) -> None:
    axes.set_xlim(window[0] * 1e3, window[1] * 1e3)
    axes.set_ylim(len(lanes) - 1 + _ROW * 0.55, -0.55)
    axes.set_yticks(range(len(lanes)), lanes, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("milliseconds since the trace began", fontsize=8.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _add_texts(figure: Any, axes: Any, shown: Timeline, times: list[StepTime]) -> None:
    """Title above; legend and one sentence per step below."""
    from matplotlib.patches import Patch

    height = figure.get_size_inches()[1]
    figure.text(0.012, 1 - 0.12 / height, _title(times), fontsize=11.5, va="top", weight="bold")
    facts = [f"{key} {value}" for key, value in shown.info.items() if value not in ("none", "")]
    figure.text(0.988, 1 - 0.14 / height, ", ".join(facts), fontsize=8, va="top", ha="right")
    patches = [Patch(color=colour, label=name) for name, colour in _legend(shown.spans)]
    lines = [time.exposed_text() for time in times[:6]]
    if len(times) > len(lines):
        lines[-1] += f" (and {len(times) - len(lines)} more steps)"
    figure.text(0.012, 0.12 / height, "\n".join(lines), fontsize=8.5, va="bottom", linespacing=1.35)
    figure.legend(
        handles=patches,
        loc="lower left",
        bbox_to_anchor=(0.006, (0.12 + 0.2 * len(lines)) / height),
        ncols=len(patches),
        fontsize=8,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _title(times: list[StepTime]) -> str:
    if not times:
        return "Timeline (no whole step was traced)"
    seconds = sum(t.seconds for t in times) / len(times)
    exposed = sum(t.exposed for t in times) / len(times)
    which = f"step {times[0].number}: {seconds * 1e3:.1f} ms"
    if len(times) > 1:
        which = f"steps {times[0].number} to {times[-1].number}: {seconds * 1e3:.1f} ms each"
    share = exposed / seconds if seconds > 0 else 0.0
    return f"{which}, {exposed * 1e3:.1f} ms exposed ({share:.1%})"


def _legend(spans: Iterable[Span]) -> list[tuple[str, str]]:
    """Colours that are used and that the lane's label does not say: those of the compute lane."""
    names = {s.name for s in spans if s.lane == COMPUTE}
    known = ("forward and backward", "forward", "backward", "step")
    entries = [(name, _COLOURS[name]) for name in known if name in names]
    if any(True for s in spans if s.lane == EXPOSED):
        entries.append(("exposed: the device stands still for the optimizer", _COLOURS[EXPOSED]))
    return entries


def _colour(lane: str, name: str) -> str:
    if lane == COMPUTE:
        return _COLOURS.get(name, _OTHER_COLOUR)
    return _COLOURS.get(lane, _OTHER_COLOUR)


def _lighter(colour: str) -> str:
    mixed = (round(0.62 * int(colour[i : i + 2], 16) + 0.38 * 255) for i in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
