"""Hyper-parameters: a parameter group's dict to the list that the native rule reads, and back.

A key path names a value of the group: "lr" is group["lr"], "betas.0" is group["betas"][0].
Values are read, never replaced: a learning rate stays the float or the tensor that it was.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

WHO = "outboard"  # who speaks in messages
# Steps of a warm-up, for which other libraries write None.
_NONE_IS_ZERO = ("t_alpha", "t_beta3")


def rule_keys(rule: str) -> list[str]:
    """Key paths of a native rule, in the order of its hyper lists."""
    return list(torch.ops.outboard.hyper_parameters(rule))


def read(group: Mapping[str, Any], path: str) -> float:
    """The value at `path` as a float. A tensor on a device is waited for.

    Raises ValueError if the group lacks it, TypeError if it is not one number.
    """
    name, _, item = path.partition(".")
    if name not in group:
        raise ValueError(
            f"[{WHO}] a parameter group has no '{name}', it has {sorted(map(str, group))}; "
            "put it back"
        )
    value = group[name]
    if value is None and name in _NONE_IS_ZERO:
        return 0.0
    try:
        return float(value[int(item)] if item else value)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise TypeError(
            f"[{WHO}] the hyper-parameter '{path}' cannot be read from {name}={value!r}: {error}; "
            "give numbers"
        ) from error


def to_list(group: Mapping[str, Any], paths: Iterable[str]) -> list[float]:
    """The values at `paths`, in their order."""
    return [read(group, path) for path in paths]


def to_group(paths: Iterable[str], values: Iterable[float]) -> dict[str, Any]:
    """The inverse of to_list: {"lr": 0.1, "betas": (0.9, 0.99)}."""
    group: dict[str, Any] = {}
    for path, value in zip(paths, values, strict=True):
        name, _, item = path.partition(".")
        group[name] = (*group.get(name, ()), value) if item else value
    return group


def keep_kind(current: Any, loaded: Any) -> Any:
    """`loaded` as the kind that `current` is: a number stays a number, a tensor a tensor."""
    if isinstance(current, torch.Tensor):
        return torch.as_tensor(loaded).to(current).clone()
    if isinstance(current, (int, float)) and isinstance(loaded, torch.Tensor):
        return loaded.item()
    return loaded


def put(current: Any, loaded: Any) -> Any:
    """`loaded`; where `current` holds tensors, these very tensors with its values: captured graphs
    read them."""
    if isinstance(current, torch.Tensor):
        return current.copy_(torch.as_tensor(loaded))
    if isinstance(current, tuple) and any(isinstance(item, torch.Tensor) for item in current):
        return tuple(put(item, value) for item, value in zip(current, loaded, strict=True))
    return loaded
