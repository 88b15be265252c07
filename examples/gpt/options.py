"""Command line of the example: options, defaults per machine, and checks of their combinations."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from gpt.model import SIZES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Options that decide which numbers a run produces; a checkpoint is resumed with the same ones.
_RUN_OPTIONS = (
    "size", "batch", "seq", "steps", "accumulation", "clip", "dtype", "optimizer", "lr",
    "state_format", "master", "offload", "seed", "data",
)  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options with every default filled in. Exits with a message if they do not fit together."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.device = _device(parser, options)
    has_gpu = options.device.type == "cuda"
    _fill(options, "size", "small" if has_gpu else "mini")
    _fill(options, "batch", 16 if has_gpu else 12)
    _fill(options, "seq", 1024 if has_gpu else 128)
    _fill(options, "dtype", "bf16" if has_gpu else "fp32")
    _fill(options, "checkpoint", options.out / "checkpoint.pt")
    if options.compare and (options.resume or options.stop_at):
        parser.error("--compare repeats a whole run: leave out --resume and --stop-at")
    if options.compare and not options.offload:
        parser.error("--compare compares outboard with torch: leave out --no-offload")
    if options.trace and not options.offload:
        parser.error("--trace records outboard's work: leave out --no-offload")
    if options.offload_gradients and not options.offload:
        parser.error("--offload-gradients needs --offload")
    if options.offload_gradients and not has_gpu:
        parser.error("--offload-gradients needs a GPU: CPU parameters are updated in place")
    if options.resume and not options.checkpoint.exists():
        parser.error(f"--resume: {options.checkpoint} does not exist; name it with --checkpoint")
    return options


def fingerprint(options: argparse.Namespace) -> str:
    """The run's options as text, stored in checkpoints."""
    return json.dumps({name: _plain(getattr(options, name)) for name in _RUN_OPTIONS})


def check_fingerprint(saved: str, options: argparse.Namespace) -> None:
    """Raises ValueError that lists every option in which a checkpoint and this run differ."""
    then, now = json.loads(saved), json.loads(fingerprint(options))
    differing = [name for name in now if then.get(name) != now[name]]
    changed = [f"--{name.replace('_', '-')} {then.get(name)}" for name in differing]
    if changed:
        raise ValueError(
            f"[train_gpt] {options.checkpoint} was written with {', '.join(changed)}; resume with "
            "the same options"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_gpt.py",
        description="Trains a byte-level GPT on real text with its optimizer state in host memory.",
    )
    model = parser.add_argument_group("model and data")
    model.add_argument("--size", choices=SIZES, help="small with a GPU, mini without")
    model.add_argument("--data", type=Path, help="file or folder; default: Python's own sources")
    model.add_argument("--batch", type=_positive, help="sequences per micro-batch (16; CPU 12)")
    model.add_argument("--seq", type=_positive, help="bytes per sequence (1024; CPU 128)")
    model.add_argument("--dtype", choices=DTYPES, help="of the weights (bf16; CPU fp32)")
    run = parser.add_argument_group("run")
    run.add_argument("--steps", type=_positive, default=500)
    run.add_argument("--accumulation", type=_positive, default=1, help="micro-batches per step")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    run.add_argument("--compare", action="store_true", help="run again with torch's optimizer")
    run.add_argument("--trace", type=Path, help="record three steps to this file, and print them")
    run.add_argument("--out", type=Path, default=Path("runs/gpt"), help="folder for the results")
    optimizer = parser.add_argument_group("optimizer")
    optimizer.add_argument(
        "--optimizer",
        default="adamw",
        help="adamw, adam, sgd, lion, a class of torch.optim, or package.module.Class",
    )
    optimizer.add_argument("--lr", type=float, help="peak learning rate; default: the optimizer's")
    optimizer.add_argument("--clip", type=_not_negative, default=1.0, help="0: off (1.0)")
    optimizer.add_argument("--state-format", default="fp32", help="such as fp32, bf16, 8bit, 4bit")
    optimizer.add_argument("--master", default="auto", help="auto, split, split8, fp32 or none")
    optimizer.add_argument("--offload", action=argparse.BooleanOptionalAction, default=True)
    optimizer.add_argument("--offload-gradients", action="store_true")
    optimizer.add_argument(
        "--placement", choices=("auto", "host", "streamed"), default="auto", help="of the state"
    )
    optimizer.add_argument(
        "--schedule", choices=("auto", "at_step", "next_forward", "in_backward"), default="auto"
    )
    saving = parser.add_argument_group("checkpoint")
    saving.add_argument("--checkpoint", type=Path, help="default: checkpoint.pt below --out")
    saving.add_argument("--save-every", type=_positive, help="steps; default: at the end only")
    saving.add_argument("--stop-at", type=_positive, help="save and leave before this step")
    saving.add_argument("--resume", action="store_true", help="continue from --checkpoint")
    return parser


def _device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        parser.error("--device cuda: torch finds no GPU; use --device cpu")
    return torch.device("cuda" if available and options.device != "cpu" else "cpu")


def _fill(options: argparse.Namespace, name: str, default: object) -> None:
    if getattr(options, name) is None:
        setattr(options, name, default)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value
