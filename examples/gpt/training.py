"""The training loop: micro-batches, timing of its phases, saving and resuming.

Losses and times are read one step late, so that nothing in the loop waits for the device.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpt.data import Corpus
from gpt.model import loss_of
from gpt.optimizers import Updater
from gpt.options import check_fingerprint, fingerprint

PHASES = ("forward", "backward", "step")
WARM_UP_STEPS = 3  # first steps allocate and choose kernels; the report leaves their times out
_HELD_OUT_BATCHES = 16
_FIRST_TRACED_STEP = 5  # what is learned in the first ones is known by then


@dataclass
class History:
    """What happened in each step; seconds are as the device saw them."""

    losses: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {p: [] for p in PHASES})
    held_out_loss: float = math.nan

    def mean_seconds(self, phase: str) -> float:
        """Mean of the steps after the warm-up (of all steps in a very short run)."""
        values = self.seconds[phase]
        values = values[WARM_UP_STEPS:] or values
        return sum(values) / len(values) if values else math.nan


@contextlib.contextmanager
def _interrupt_after_step() -> Iterator[Callable[[], bool]]:
    """Remembers the first Ctrl-C instead of raising; the second one is raised as usual."""
    seen = False

    def remember(number: int, frame: object) -> None:
        nonlocal seen
        del number, frame
        seen = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


class PhaseClock:
    """Times the phases of one step: CUDA events on the compute stream, or the CPU's clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._spans.append((name, begin, self._now()))

    def seconds(self) -> dict[str, float]:
        """Time per phase; waits for the step's end."""
        totals = dict.fromkeys(PHASES, 0.0)
        for name, begin, end in self._spans:
            if self._on_gpu:
                end.synchronize()
                totals[name] += begin.elapsed_time(end) / 1e3
            else:
                totals[name] += end - begin
        return totals

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _start_copy(value: Tensor) -> Tensor:
    """A host tensor that holds `value` once the work enqueued so far is done. Does not wait:
    float(value) would, for everything that the stream was given up to then."""
    if value.device.type == "cpu":
        return value
    return torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


class Trainer:
    """One run: a model, its optimizer, its data, and what happened so far."""

    def __init__(
        self, options: argparse.Namespace, corpus: Corpus, model: nn.Module, updater: Updater
    ) -> None:
        self.options = options
        self.corpus = corpus
        self.model = model
        self.updater = updater
        self.history = History()
        self.recorder: Any = None  # of --trace
        self.step = 0  # steps taken, those before a resume included
        self._pending: tuple[Tensor, PhaseClock] | None = None
        self._started = 0.0
        self._elapsed = math.nan  # seconds between the starts of the last two steps

    def run(self, title: str, *, may_save: bool) -> None:
        """Trains until --steps or --stop-at, then saves if `may_save`.

        Ctrl-C lets the current step finish and saves; then KeyboardInterrupt is raised.
        """
        end = min(self.options.stop_at or self.options.steps, self.options.steps)
        pause = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log wants few lines
        bar = tqdm(total=end, initial=self.step, desc=title, unit="step", mininterval=pause)
        self._started = time.perf_counter()
        with bar, _interrupt_after_step() as was_interrupted:
            while self.step < end and not was_interrupted():
                self._take_step(bar)
                if may_save and self._is_due() and self.step < end:
                    self.save()
            self._settle(bar)
            if may_save:
                self.save()
        if was_interrupted():
            raise KeyboardInterrupt

    def evaluate(self) -> float:
        """Mean loss over the held-out bytes, in nats per byte; the same batches in every run."""
        losses = []
        with torch.no_grad():
            for index in range(_HELD_OUT_BATCHES):
                batch = self.corpus.held_out_batch(self.options.batch, self.options.seq, index)
                batch = batch.to(self.options.device)
                losses.append(float(loss_of(self.model, batch.inputs, batch.targets)))
        self.history.held_out_loss = sum(losses) / len(losses)
        return self.history.held_out_loss

    def save(self) -> None:
        """Writes the whole run to --checkpoint; the old file survives any failure."""
        import outboard

        self._settle(None)
        self.options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        contents = {
            "options": fingerprint(self.options),
            "step": self.step,
            "model": self.model.state_dict(),
            "updater": self.updater.state_dict(),
            "losses": torch.tensor(self.history.losses, dtype=torch.float64),
            "rng": torch.get_rng_state(),
        }
        outboard.save(contents, self.options.checkpoint)

    def load(self) -> None:
        """Continues where --checkpoint was written."""
        import outboard

        contents = outboard.load(self.options.checkpoint)
        check_fingerprint(contents["options"], self.options)
        self.model.load_state_dict(contents["model"])
        self.updater.load_state_dict(contents["updater"])
        self.history.losses = contents["losses"].tolist()
        self.step = int(contents["step"])
        torch.set_rng_state(contents["rng"])

    def _is_due(self) -> bool:
        every = self.options.save_every
        return bool(every) and self.step % every == 0

    def _take_step(self, bar: tqdm) -> None:
        options = self.options
        clock = PhaseClock(options.device)
        total = torch.zeros((), device=options.device)
        if options.trace and self.step == _FIRST_TRACED_STEP:
            self.recorder = self.updater.trace(options.trace)
        self.updater.start_step(self._learning_rate())
        for micro in range(options.accumulation):
            batch = self.corpus.batch(
                options.batch, options.seq, seed=options.seed, step=self.step, micro=micro
            ).to(options.device)
            with self.updater.micro_step(is_last=micro == options.accumulation - 1):
                with clock.phase("forward"):
                    loss = loss_of(self.model, batch.inputs, batch.targets) / options.accumulation
                with clock.phase("backward"):
                    self.updater.backward(loss)
            total += loss.detach()
        loss_on_host = _start_copy(total)
        with clock.phase("step"):
            self.updater.step()
        self.step += 1
        now = time.perf_counter()
        self._elapsed, self._started = now - self._started, now
        self._settle(bar)
        self._pending = (loss_on_host, clock)

    def _settle(self, bar: tqdm | None) -> None:
        """Reads the results of the step before; they are on the host's side by now."""
        if self._pending is None:
            return
        loss, clock = self._pending
        self._pending = None
        for phase, seconds in clock.seconds().items():
            self.history.seconds[phase].append(seconds)
        # Order: the copy was enqueued before the step whose end clock.seconds() has waited for.
        self.history.losses.append(float(loss))
        if bar is not None:
            tokens = self.options.accumulation * self.options.batch * self.options.seq
            bar.update(1)
            bar.set_postfix_str(
                f"loss {self.history.losses[-1]:.3f}, {tokens / self._elapsed:,.0f} tokens/s, "
                f"{self._elapsed * 1e3:.0f} ms/step",
                refresh=False,
            )

    def _learning_rate(self) -> float:
        """A short linear warm-up, then half a cosine down to a tenth of the peak."""
        steps = self.options.steps
        warm_up = max(1, steps // 20)
        if self.step < warm_up:
            return self.options.peak_lr * (self.step + 1) / warm_up
        progress = (self.step - warm_up) / max(1, steps - warm_up)
        return self.options.peak_lr * (0.55 + 0.45 * math.cos(math.pi * progress))
