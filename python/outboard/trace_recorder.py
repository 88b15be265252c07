"""Recording the timeline of a training loop's next steps: what optimizer.trace() returns.

The engine records its own work; here is only what the caller does, and when to stop. The file is
timeline.py's.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .breakdown import Span, StepTime, caller_spans
from .timeline import Timeline, write_timeline


class TraceRecorder:
    """Records the next steps of an optimizer and writes them to a file; what optimizer.trace() is.

    Recording begins at once. After `steps` steps, or at stop() or the end of a `with` if that is
    earlier, it waits for the device and writes the file. The first step begins on an idle device,
    so the later ones are the typical ones. Then `steps` holds the breakdown of each step.
    """

    def __init__(self, optimizer: Any, engine: Any, path: str | os.PathLike, steps: int = 3):
        """`engine`: the native one, with start_trace, stop_trace, take_trace and synchronize.

        Raises TypeError or ValueError for what is no number of steps, FileNotFoundError if the
        file's folder does not exist, RuntimeError if a trace is under way.
        """
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"[outboard.trace] steps is {steps!r}; give a whole number")
        if steps < 1:
            raise ValueError(f"[outboard.trace] steps is {steps}; give at least 1")
        self.path = Path(path)
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"[outboard.trace] the folder of {self.path} does not exist; make it first"
            )
        before = getattr(optimizer, "_trace_recorder", None)
        if before is not None and not before.is_done:
            raise RuntimeError(
                f"[outboard.trace] a trace to {before.path} is under way; stop() it first"
            )
        self.steps: list[StepTime] = []
        self.is_done = False
        self._wanted = steps
        self._engine = engine
        self._name = type(optimizer).__name__
        engine.start_trace()
        self._clock = _Clock(next(p.device for g in optimizer.param_groups for p in g["params"]))
        self._begins: list[Any] = []  # marks of the clock
        self._ends: list[Any] = []
        if before is not None:
            before._remove_hooks()
        self._hooks = [
            optimizer.register_step_pre_hook(self._note_begin),
            optimizer.register_step_post_hook(self._note_end),
        ]
        optimizer._trace_recorder = self

    def stop(self) -> None:
        """Writes what was recorded so far, if that has not happened. Raises OSError if the file
        cannot be written."""
        self._remove_hooks()
        self._finish()

    def __enter__(self) -> TraceRecorder:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        # What went wrong in the body matters more than a trace that is not written.
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            self.stop()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()

    # The hooks stay until stop() or the next recorder: torch is iterating over them now.
    def _note_begin(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self.is_done:
            del self._begins[len(self._ends) :]  # of a step that failed
            self._begins.append(self._clock.mark())

    def _note_end(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self.is_done or len(self._begins) == len(self._ends):
            return
        self._ends.append(self._clock.mark())
        if len(self._ends) < self._wanted:
            return
        try:
            self._finish()
        except OSError as error:  # the step is done and training goes on
            warnings.warn(str(error), stacklevel=4)

    def _finish(self) -> None:
        if self.is_done:
            return
        self.is_done = True
        try:
            self._engine.synchronize()  # the last step's updates may still be under way
        finally:
            self._engine.stop_trace()
        spans = [Span(*row) for row in zip(*self._engine.take_trace(), strict=True)]
        begins, ends = self._clock.seconds(self._begins), self._clock.seconds(self._ends)
        spans += caller_spans(spans, begins[: len(ends)], ends)
        timeline = Timeline(sorted(spans, key=lambda s: s.begin), self._info())
        self.steps = timeline.step_times()
        write_timeline(timeline, self.path)

    def _info(self) -> dict[str, str]:
        import torch

        from . import build_info

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        return {
            "version": build_info().get("version", "unknown"),
            "torch": str(torch.__version__),
            "gpu": device,
            "optimizer": self._name,
        }


class _Clock:
    """Marks in the work of the caller's stream; without a GPU, in the caller's time. In seconds
    since it was made, which is just after the native clock was started on an idle device."""

    def __init__(self, device: Any):
        self._device = device
        self._start = self.mark()

    def mark(self) -> Any:
        """Blocks nothing."""
        if self._device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Blocks until the stream has passed them."""
        if self._device.type != "cuda":
            return [mark - self._start for mark in marks]
        for mark in marks:
            mark.synchronize()
        return [self._start.elapsed_time(mark) / 1e3 for mark in marks]
