"""Trains the example's GPT once for each state format, on the same text from the same seed: one
JSON line per format with its losses beside those of the first, and a picture of the curves. The
format "bitsandbytes" is that library's 8-bit AdamW, with all state on the GPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

_EXAMPLE = Path(__file__).parent.parent / "examples" / "train_gpt.py"
_PEER = "bitsandbytes"
_LAST = 100  # steps that a final training loss is the mean of


def _train(state_format: str, out: Path, arguments: list[str]) -> tuple[list[float], float]:
    """Losses of the steps, and on held-out text at the end."""
    command = [sys.executable, str(_EXAMPLE), "--out", str(out)]
    if state_format == _PEER:
        command += ["--optimizer", "bitsandbytes.optim.AdamW8bit", "--no-offload"]
    else:
        command += ["--state-format", state_format]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        output = done.stdout[-2000:] + done.stderr[-2000:]
        raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
    held_out = re.search(r"held-out loss ([0-9.]+)", done.stdout)
    if held_out is None:
        raise RuntimeError(f"no held-out loss in the output of {' '.join(command)}")
    contents = torch.load(out / "checkpoint.pt", weights_only=True)
    return contents["losses"].tolist(), float(held_out[1])


def _why_skipped(state_format: str) -> str | None:
    """What a format needs and this machine has not."""
    if state_format != _PEER:
        return None
    if importlib.util.find_spec(_PEER) is None:
        return f"{_PEER} is not installed"
    return None if torch.cuda.is_available() else f"{_PEER} rounds exactly on a GPU only"


def _smooth(losses: list[float]) -> list[float]:
    """Means over the last _LAST / 2 steps."""
    window = _LAST // 2
    sums = torch.tensor([0.0, *losses], dtype=torch.float64).cumsum(0)
    return ((sums[window:] - sums[:-window]) / window).tolist()


def _plot(path: Path, curves: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, losses in curves.items():
        smooth = _smooth(losses)
        first = len(losses) - len(smooth)
        axes.plot(range(first + 1, len(losses) + 1), smooth, label=name, lw=1.2)
    axes.set(xlabel="step", ylabel=f"loss, nats per byte (mean of {_LAST // 2} steps)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="fp32,8bit,8bit/4bit,4bit,fp8")
    parser.add_argument("--out", type=Path, default=Path("low_bit_training"))
    options, arguments = parser.parse_known_args()  # the rest goes to the example
    curves: dict[str, list[float]] = {}
    reference: tuple[float, float] | None = None
    for state_format in options.formats.split(","):
        why = _why_skipped(state_format)
        if why:
            line = {"benchmark": "low_bit_training", "state_format": state_format, "skipped": why}
            print(json.dumps(line), flush=True)
            continue
        out = options.out / state_format.replace("/", "_")
        out.mkdir(parents=True, exist_ok=True)
        losses, held_out = _train(state_format, out, arguments)
        curves[state_format] = losses
        final = sum(losses[-_LAST:]) / len(losses[-_LAST:])
        reference = reference or (final, held_out)
        line = {
            "benchmark": "low_bit_training",
            "state_format": state_format,
            "steps": len(losses),
            "final_loss": round(final, 5),
            "held_out_loss": round(held_out, 5),
            "final_over_first": round(final / reference[0], 5),
            "held_out_over_first": round(held_out / reference[1], 5),
        }
        print(json.dumps(line), flush=True)
    _plot(options.out / "low_bit_training.png", curves)


if __name__ == "__main__":
    main()
