"""The timeline of traced steps and its file, a Chrome trace: https://ui.perfetto.dev and
chrome://tracing open it.

trace_recorder.py records one, breakdown.py says what its times mean, timeline_picture.py draws it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .breakdown import (
    BACKWARD,
    CAUSES,
    COMPUTE,
    EXPOSED,
    STEPS,
    WAITS,
    Span,
    StepTime,
    step_times,
)

LANES = (STEPS, COMPUTE, BACKWARD, EXPOSED, *CAUSES, WAITS)  # from the top down; others follow
FILE_FORMAT = "1"
_PROCESS = 1


@dataclass(frozen=True)
class Timeline:
    """Spans in order of begin, and what the file says about where they come from."""

    spans: list[Span]
    info: dict[str, str] = field(default_factory=dict)

    def lanes(self) -> list[str]:
        """Those with spans, from the top of the picture down."""
        found = dict.fromkeys(span.lane for span in self.spans)
        return [lane for lane in LANES if lane in found] + [x for x in found if x not in LANES]

    def step_times(self) -> list[StepTime]:
        """The breakdown of each traced step."""
        return step_times(self.spans)


# ---- The file -----------------------------------------------------------------------------------


def write_timeline(timeline: Timeline, path: str | os.PathLike) -> None:
    """Writes a Chrome trace. `path` holds the old file or the whole new one at any time. Raises
    OSError, which names the file, if it cannot be written."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(to_chrome(timeline), file, separators=(",", ":"), allow_nan=False)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno or 0,
            f"[outboard.trace] {target} was not written ({error}); free space or choose another "
            "place",
        ) from error


def to_chrome(timeline: Timeline) -> dict[str, Any]:
    """The file's content. Spans of a lane that overlap lie in rows of their own of that lane's
    name: a viewer expects the events of one row to nest."""
    events: list[dict[str, Any]] = []
    rows: list[tuple[str, int]] = []  # lane, end of its last event in ns
    for lane in timeline.lanes():
        first = len(rows)
        for span in sorted((s for s in timeline.spans if s.lane == lane), key=lambda s: s.begin):
            begin, end = round(span.begin * 1e9), round(span.end * 1e9)
            row = next((r for r in range(first, len(rows)) if rows[r][1] <= begin), len(rows))
            rows[row : row + 1] = [(lane, end)]
            events.append(_event(span, row + 1, begin, end))
    tracks: list[tuple[str, str, Any, int]] = [("process_name", "name", "outboard", 0)]
    for number, (lane, _) in enumerate(rows, 1):
        tracks.append(("thread_name", "name", lane, number))
        tracks.append(("thread_sort_index", "sort_index", number, number))
    metadata = [
        {"ph": "M", "name": name, "pid": _PROCESS, "tid": row, "args": {key: value}}
        for name, key, value, row in tracks
    ]
    return {
        "displayTimeUnit": "ms",
        "otherData": {**timeline.info, "outboard_timeline": FILE_FORMAT},
        "traceEvents": metadata + events,
    }


def _event(span: Span, row: int, begin: int, end: int) -> dict[str, Any]:
    event = {
        "ph": "X",
        "name": span.name,
        "cat": span.lane,
        "pid": _PROCESS,
        "tid": row,
        "ts": begin / 1e3,
        "dur": (end - begin) / 1e3,
    }
    if span.bytes > 0:
        event["args"] = {"bytes": span.bytes}
        if end > begin:
            event["args"]["GB/s"] = round(span.bytes / (end - begin), 3)
    return event


def read_timeline(path: str | os.PathLike) -> Timeline:
    """Reads a file of write_timeline(). Raises FileNotFoundError, or ValueError, which says what is
    wrong and where, for any other file."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"it is no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise _malformed(path, "it has no list traceEvents")
    info = content.get("otherData")
    if not isinstance(info, dict) or "outboard_timeline" not in info:
        raise _malformed(path, "its otherData does not say that outboard wrote it")
    if info["outboard_timeline"] != FILE_FORMAT:
        raise _malformed(
            path, f"its format is {info['outboard_timeline']!r}, this version reads {FILE_FORMAT!r}"
        )
    spans = []
    for index, event in enumerate(content["traceEvents"]):
        try:
            if _member(event, "ph", str) == "X":
                spans.append(_span(event))
        except ValueError as error:
            raise _malformed(path, f"traceEvents[{index}]: {error}") from error
    spans.sort(key=lambda s: s.begin)
    texts = {key: str(value) for key, value in info.items() if key != "outboard_timeline"}
    return Timeline(spans, texts)


def _span(event: Mapping[str, Any]) -> Span:
    begin, duration = _number(event, "ts"), _number(event, "dur")
    if duration < 0:
        raise ValueError(f"dur is {duration}, below 0")
    args = event.get("args", {})
    moved = args.get("bytes", 0) if isinstance(args, dict) else None
    if isinstance(moved, bool) or not isinstance(moved, int) or moved < 0:
        raise ValueError(f"args is {args!r}, not bytes as a whole number")
    # Added before the division: neighbours that touch in the file touch in seconds.
    end = (begin + duration) / 1e6
    return Span(_member(event, "cat", str), _member(event, "name", str), begin / 1e6, end, moved)


def _number(event: Mapping[str, Any], key: str) -> float:
    value = _member(event, key, (int, float))
    # The size first: isfinite() cannot take the largest integers that JSON can hold.
    if isinstance(value, bool) or abs(value) > 1e15 or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, no number of microseconds")
    return float(value)


def _member(event: Any, key: str, kind: type | Sequence[type]) -> Any:
    if not isinstance(event, dict):
        raise ValueError(f"it is {type(event).__name__}, not an object")
    if not isinstance(event.get(key), kind):
        raise ValueError(f"{key} is {event.get(key)!r}")
    return event[key]


def _malformed(path: str | os.PathLike, what: str) -> ValueError:
    return ValueError(
        f"[outboard timeline] {os.fspath(path)} is no timeline: {what}; give a file that "
        "optimizer.trace() wrote"
    )
