"""Finds and loads the shared library that holds everything native. Knows file names only."""

from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("liboutboard.so")


def load_library(path: Path = LIBRARY) -> None:
    """Registers `torch.ops.outboard` and `torch.classes.outboard`.

    Raises ImportError, naming the path and the remedy, if the file is missing or does not load.
    """
    if not path.exists():
        raise ImportError(
            f"[outboard] the native library {path} does not exist; install the package with "
            "`pip install .`, or build it in place with `tools/test`"
        )
    try:
        torch.classes.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"[outboard] the native library {path} does not load with torch {torch.__version__}: "
            f"{error.__cause__ or error}; build it again against this torch "
            "(`pip install --no-build-isolation .`) and "
            "install oneTBB (libtbb12) if it is the one that is missing"
        ) from error
