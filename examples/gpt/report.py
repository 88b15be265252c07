"""What a run leaves behind: the table, the loss curve and the sampled text."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from gpt.training import PHASES, History

KINDS = ("weights", "gradients", "masters", "state", "accumulators", "staging", "workspace")


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run needed."""

    elements: int
    held: dict[str, float]  # "host_state", "device_weights", ...: bytes of one kind in one place
    device_peak: float  # 0 without a GPU
    process_peak: float  # resident set of the process; nan if the run did not take place


def measure(
    model: nn.Module, device: torch.device, stats: dict[str, float], *, keeps_gradients: bool
) -> Footprint:
    """The footprint of the run that ends here; `stats` are the optimizer's own figures."""
    is_gpu = device.type == "cuda"
    weights = float(sum(p.numel() * p.element_size() for p in model.parameters()))
    model_kinds = {"weights": weights, "gradients": weights if keeps_gradients else 0.0}
    held = {name: value for name, value in stats.items() if _kind_of(name) in KINDS}
    for kind, size in model_kinds.items():
        name = f"{'device' if is_gpu else 'host'}_{kind}"
        held[name] = max(size, held.get(name, 0.0))
    return Footprint(
        elements=sum(p.numel() for p in model.parameters()),
        held=held,
        device_peak=float(torch.cuda.max_memory_allocated(device)) if is_gpu else 0.0,
        process_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    )


def plain_adamw(run: Footprint, model: nn.Module) -> Footprint:
    """What torch's AdamW beside the model would need: all of it where the model is."""
    place = "device" if run.device_peak else "host"
    size = next(model.parameters()).element_size()
    per_element = {"weights": size, "gradients": size, "masters": 4 if size < 4 else 0, "state": 8}
    held = {f"{place}_{kind}": run.elements * count for kind, count in per_element.items()}
    more = sum(held.values()) - _total(run, place)
    return Footprint(run.elements, held, run.device_peak and run.device_peak + more, math.nan)


def print_table(
    run: Footprint,
    history: History,
    plain: Footprint,
    plain_history: History | None,
    console: Console,
) -> None:
    """This run beside plain torch: measured if there is a history of it, else computed."""
    table = Table(title=f"{run.elements / 1e6:,.1f} million parameters")
    table.add_column("")
    table.add_column("this run", justify="right")
    table.add_column(f"torch, {'measured' if plain_history else 'computed'}", justify="right")
    for place in ("device", "host"):
        _add_memory(table, place, run, plain)
    table.add_row("process, peak", _size(run.process_peak), _size(plain.process_peak))
    table.add_section()
    for phase in PHASES:
        other = plain_history.mean_seconds(phase) if plain_history else math.nan
        label = "exposed step" if phase == "step" else phase
        table.add_row(label, _milliseconds(history.mean_seconds(phase)), _milliseconds(other))
    console.print(table)


def _add_memory(table: Table, place: str, run: Footprint, plain: Footprint) -> None:
    if not _total(run, place) and not _total(plain, place):
        return
    for kind in KINDS:
        name = f"{place}_{kind}"
        ours, theirs = run.held.get(name, 0.0), plain.held.get(name, 0.0)
        if max(ours, theirs) >= 1024:
            table.add_row(f"{place}: {kind}", _size(ours), _size(theirs))
    per_element = [f"{_total(side, place) / side.elements:.2f} B" for side in (run, plain)]
    table.add_row(f"{place}: per element", *per_element)
    if place == "device":
        table.add_row(
            "device: peak, all included", _size(run.device_peak), _size(plain.device_peak)
        )
    table.add_section()


def _total(side: Footprint, place: str) -> float:
    return sum(side.held.get(f"{place}_{kind}", 0.0) for kind in KINDS)


def _kind_of(name: str) -> str:
    place, _, kind = name.partition("_")
    return kind if place in ("host", "device") else ""


def print_comparison(ours: History, theirs: History, weights: float, console: Console) -> None:
    """Losses of two runs from one seed, and how far they ever were apart."""
    apart = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    table = Table(title="The same run with torch's own optimizer")
    for heading in ("", "outboard", "torch"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("loss of the last step", f"{ours.losses[-1]:.6f}", f"{theirs.losses[-1]:.6f}")
    table.add_row("held-out loss", f"{ours.held_out_loss:.6f}", f"{theirs.held_out_loss:.6f}")
    console.print(table)
    console.print(f"largest difference of a step's loss: {apart:.3g}")
    console.print(f"largest difference of a weight at the end: {weights:.3g}")


def plot_losses(path: Path, runs: dict[str, History]) -> None:
    """Writes the loss curves as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, (name, history) in enumerate(runs.items()):
        style = "-" if number == 0 else "--"
        axes.plot(range(1, len(history.losses) + 1), history.losses, style, label=name, lw=1.2)
        axes.axhline(history.held_out_loss, color="grey", lw=0.8, ls=":")
    axes.set(xlabel="step", ylabel="loss, nats per byte", title="dotted: held-out bytes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _size(count: float) -> str:
    if math.isnan(count):
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _milliseconds(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1e3:.1f} ms"
