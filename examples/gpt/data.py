"""Real text as bytes: reading it, holding a part out, and drawing batches.

A batch depends only on (seed, step, micro-batch), so that a resumed run sees what an uninterrupted
one would have seen.
"""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT_FRACTION = 0.05
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes that training never sees, as flat uint8 tensors."""

    name: str
    files: int
    train: Tensor
    held_out: Tensor

    def batch(self, batch: int, seq: int, *, seed: int, step: int, micro: int) -> Batch:
        """Random windows of the training bytes."""
        return _windows(self.train, batch, seq, f"{seed} {step} {micro}")

    def held_out_batch(self, batch: int, seq: int, index: int) -> Batch:
        """Random windows of the held-out bytes, the same ones in every run."""
        return _windows(self.held_out, batch, seq, f"held out {index}")


@dataclass(frozen=True)
class Batch:
    """`targets` are `inputs` one byte later; both are int64, batch x seq."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.inputs.to(device, non_blocking=True), self.targets.to(device, non_blocking=True)
        )


def load_corpus(path: Path | None, seq: int) -> Corpus:
    """Reads one file, every text file below a folder, or (None) the standard library's sources.

    Raises ValueError if there is nothing to read or too little of it for windows of `seq` bytes.
    """
    name, paths = _find_files(path)
    texts = [data for file in paths if (data := _read_text(file))]
    data = torch.frombuffer(bytearray(b"\n".join(texts)), dtype=torch.uint8) if texts else None
    held_out = int(len(data) * HELD_OUT_FRACTION) if data is not None else 0
    if data is None or held_out < seq + 2:
        size = 0 if data is None else len(data)
        needed = int((seq + 2) / HELD_OUT_FRACTION) + 1
        raise ValueError(
            f"[train_gpt] {name} holds {size} bytes of text in {len(texts)} files, sequences of "
            f"{seq} need {needed}; choose more data with --data or a shorter --seq"
        )
    return Corpus(name, len(texts), data[:-held_out], data[-held_out:])


def _find_files(path: Path | None) -> tuple[str, list[Path]]:
    if path is None:
        root, pattern, name = Path(sysconfig.get_path("stdlib")), "*.py", "the standard library"
    else:
        root, pattern, name = path.expanduser(), "*", str(path)
    if root.is_file():
        return name, [root]
    if not root.is_dir():
        raise ValueError(f"[train_gpt] --data {root} does not exist; name a file or a folder")
    files = [file for file in sorted(root.rglob(pattern)) if _is_wanted(file, root)]
    # Neighbours in a folder are alike: without this the held-out end would be another kind of text.
    random.Random(0).shuffle(files)
    return name, files


def _is_wanted(file: Path, root: Path) -> bool:
    parts = file.relative_to(root).parts
    hidden = any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in parts)
    return not hidden and file.is_file()


def _read_text(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError:
        return b""
    return b"" if b"\0" in data[:4096] else data


def _windows(data: Tensor, batch: int, seq: int, seed: str) -> Batch:
    generator = random.Random(seed)
    starts = [generator.randrange(len(data) - seq) for _ in range(batch)]
    window = torch.stack([data[start : start + seq + 1] for start in starts]).long()
    return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous())
