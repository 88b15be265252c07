"""Which parameter's state is stored how: a user's wishes, and which parameters they fit. Names of
formats and block sizes are checked by the native library.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from .hyper import WHO


class FormatWish(NamedTuple):
    """A state_format and its block size; None: the format's own."""

    name: str
    block_size: int | None = None


def checked(name: Any, block_size: Any, where: str = "state_format") -> FormatWish:
    """Raises TypeError or ValueError for what is no format."""
    if not isinstance(name, str):
        raise TypeError(f"[{WHO}] {where} is {name!r}; give the name of a format, e.g. '8bit'")
    if block_size is not None and (
        not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1
    ):
        kind = ValueError if isinstance(block_size, int) else TypeError
        raise kind(f"[{WHO}] block_size is {block_size!r}; give a positive integer, or None")
    try:
        torch.ops.outboard.check_state_format(name, block_size or 0)
    except ValueError as error:
        sized = "" if block_size is None else f" with block_size {block_size}"
        raise ValueError(f"[{WHO}] {where} is {name!r}{sized}: {error}") from None
    return FormatWish(name, block_size)


def checked_wishes(wishes: Any) -> tuple[tuple[Any, FormatWish], ...]:
    """`state_formats` as pairs. Raises TypeError or ValueError."""
    if wishes is None:
        return ()
    if not isinstance(wishes, Mapping):
        raise TypeError(
            f"[{WHO}] state_formats is {wishes!r}; give a dict of name patterns (or parameters) "
            "and formats"
        )
    result = []
    for key, value in wishes.items():
        if not isinstance(key, (str, torch.Tensor)):
            raise TypeError(
                f"[{WHO}] state_formats has the key {key!r}; give name patterns or parameters"
            )
        name, block_size = value if isinstance(value, (tuple, list)) else (value, None)
        shown = key if isinstance(key, str) else f"a tensor of {tuple(key.shape)}"
        result.append((key, checked(name, block_size, f"state_formats[{shown!r}]")))
    return tuple(result)


def fits(wish: str | torch.Tensor, parameter: torch.Tensor, name: str) -> bool:
    """Whether a name pattern, name or parameter means this parameter."""
    return fnmatch.fnmatchcase(name, wish) if isinstance(wish, str) else wish is parameter


def check_all_fit(what: str, wishes: Iterable[Any], named: list[tuple[torch.Tensor, str]]) -> None:
    """Raises ValueError if one of `wishes` fits none of the parameters."""
    for wish in wishes:
        if not any(fits(wish, parameter, name) for parameter, name in named):
            shown = repr(wish) if isinstance(wish, str) else f"a tensor of {tuple(wish.shape)}"
            raise ValueError(
                f"[{WHO}] {what} holds {shown}, which fits none of {len(named)} parameters; "
                "names are known only if model.named_parameters() was given"
            )


def matching(wishes: Any, parameters: list[torch.Tensor], names: list[str]) -> list[int]:
    """The indices of the parameters that `wishes` (one, or several) mean. Raises ValueError for one
    that fits nothing."""
    if isinstance(wishes, (str, torch.Tensor)):
        wishes = (wishes,)
    wishes = list(wishes)
    named = list(zip(parameters, names, strict=True))
    check_all_fit("parameters", wishes, named)
    return [index for index, (p, n) in enumerate(named) if any(fits(wish, p, n) for wish in wishes)]
