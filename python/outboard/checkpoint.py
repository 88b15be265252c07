"""Checkpoint files: saved atomically, checked byte for byte before anything in them is believed.

A file is torch.save's zip; torch.load(weights_only=True) reads it too.
"""

import contextlib
import fcntl
import glob
import os
import pickle
import secrets
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch


def save(obj: Any, path: str | os.PathLike) -> None:
    """Writes `obj` so that `path` always holds a whole checkpoint: the old one or the new one.

    Writes a temporary file in the same folder, flushes it to the disk, renames it, and flushes the
    folder. Blocks until that is done. Leftovers of savers that were killed are removed first. What
    a symbolic link points to is replaced, not the link; the new file has the permissions of the
    old. Raises OSError if the disk is full or not writable; the old file is then untouched.
    """
    target = Path(os.path.realpath(path))
    _remove_leftovers(target)
    temporary = None
    try:
        file, temporary = _new_partial(target)
        with file:
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        _flush_folder(target.parent)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        raise OSError(
            getattr(error, "errno", None) or 0,
            f"[outboard.save] {target} was not written ({error}), a file of that name is as it "
            "was; free space or choose another place",
        ) from error


def load(path: str | os.PathLike, map_location: Any = "cpu", *, verify: bool = True) -> Any:
    """Reads a checkpoint without executing anything in it.

    `verify` reads every byte once and checks the CRCs. With map_location "cpu" the tensors are
    mapped from the file and read when used. Raises FileNotFoundError, or ValueError if the file is
    truncated, changed or no checkpoint.
    """
    path = Path(path)
    try:
        _check_archive(path, verify)
        return torch.load(
            path, map_location=map_location, weights_only=True, mmap=map_location == "cpu" or None
        )
    except FileNotFoundError:
        raise
    # A damaged header can make the zip reader raise nearly anything.
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        OSError,
        NotImplementedError,
        IndexError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(
            f"[outboard.load] {path} ({path.stat().st_size} bytes) is damaged or no checkpoint: "
            f"{error}; use an older one"
        ) from error


def _check_archive(path: Path, verify: bool) -> None:
    """Refuses archives that are damaged, or that would grow when read."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        held = sum(entry.file_size for entry in entries)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch.save never does")
        if held > path.stat().st_size:
            raise ValueError(f"it claims to hold {held} bytes")
        broken = archive.testzip() if verify else None
        if broken is not None:
            raise ValueError(f"the checksum of its entry {broken} is wrong")


def _new_partial(target: Path) -> tuple[BinaryIO, Path]:
    """A new locked file; the lock tells other savers that it is no leftover.

    On file systems without locks nobody removes leftovers.
    """
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        file = open(path, "xb")  # noqa: SIM115 - the caller closes it
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file, path
        file.close()  # removed as a leftover before it was locked


def _remove_leftovers(target: Path) -> None:
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        try:
            with open(leftover, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
        except OSError:
            continue  # another saver is at work, or was quicker


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
