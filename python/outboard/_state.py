"""State dicts: what outboard adds to torch's layout, and every check that a loaded one must pass
before anything is changed. Moves no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ._base_class import FACTORED, NEEDED_BY
from .hyper import WHO

FORMAT_VERSION = 1
_MASTER_DTYPES = (torch.int16, torch.int8, torch.float32)  # split, split8, fp32
# Rules whose scalars need the count; the others only ask whether there was a step.
NEEDS_STEP = ("AdamW", FACTORED, "Adam", "Adagrad", "AdEMAMix", "LAMB")


# One value for each row and column of the parameter as size(0) rows.
_FACTORS = {
    "exp_avg_sq_row": lambda p: p.shape[0],
    "exp_avg_sq_col": lambda p: p.numel() // p.shape[0],
}


def fail(what: str, remedy: str = "load a state dict saved from the same parameters") -> None:
    """Raises the ValueError of a refused state dict."""
    raise ValueError(f"[{WHO}] {what}; {remedy}. Nothing was changed")


def check_groups(saved: Any, groups: list[dict[str, Any]]) -> list[int]:
    """The saved parameter ids in order. Raises ValueError unless group counts and lengths fit."""
    if not isinstance(saved, list) or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in saved
    ):
        fail("the state dict's 'param_groups' is not a list of groups with 'params'")
    if len(saved) != len(groups):
        fail(f"the loaded state dict has {len(saved)} parameter groups, not {len(groups)}")
    for number, (theirs, ours) in enumerate(zip(saved, groups, strict=True)):
        if len(theirs["params"]) != len(ours["params"]):
            fail(
                f"parameter group {number} of the loaded state dict has {len(theirs['params'])} "
                f"parameters, the optimizer's has {len(ours['params'])}"
            )
    ids = [i for group in saved for i in group["params"]]
    if not all(isinstance(i, (int, str)) for i in ids) or len(set(ids)) != len(ids):
        fail("the loaded state dict's parameters are no list of different numbers or names")
    return ids


def check_entries(state: Any, ids: list[int], stepped: Iterable[int]) -> None:
    """Every entry belongs to a parameter, and none of the entries known to exist is missing."""
    if not isinstance(state, Mapping):
        fail(f"the state dict's 'state' is a {type(state).__name__}, not a dict")
    extra = [key for key in state if key not in set(ids)]
    if extra:
        fail(f"the state dict has state for {extra[:5]}, which no group has as a parameter")
    missing = [i for i in stepped if not state.get(i)]
    if missing:
        fail(f"the state dict lacks the state of parameters {missing[:5]}")
    for i, entry in state.items():
        if not isinstance(entry, Mapping):
            fail(f"the state of parameter {i} is a {type(entry).__name__}, not a dict")


def native_entry(
    entry: Mapping[str, Any],
    parameter: torch.Tensor,
    name: str,
    rule: str,
    group: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """The entry as the engine takes it. `group` is the one that comes with it."""
    keys = torch.ops.outboard.state_keys(rule)
    extra = [key for key in entry if str(key).partition(".")[0] not in (*keys, "step", "master")]
    if {str(key) for key in extra} & {"exp_avg_sq", *_FACTORS}:
        fail(
            f"the state of '{name}' has {extra} and the optimizer keeps {keys}",
            "construct the optimizer with the factored_second_moment that was saved",
        )
    if extra:
        fail(f"the state of '{name}' has {extra}, which {rule} does not have; it has {keys}")
    result = {}
    for key in keys:
        is_needed = bool(group.get(NEEDED_BY[key])) if key in NEEDED_BY else True
        value = entry.get(key)
        parts = {name: part for name, part in entry.items() if name.startswith(f"{key}.")}
        for name_of_part, part in parts.items():
            if not isinstance(part, torch.Tensor):
                fail(f"'{name_of_part}' of '{name}' is a {type(part).__name__}, not a tensor")
        if is_needed:
            result.update(parts)  # checked by the engine
        if value is None and not parts and is_needed and entry:
            # SGD and LARS make their buffer at the first step with momentum.
            if rule in ("SGD", "LARS"):
                continue
            fail(f"the state of '{name}' lacks '{key}'")
        if value is not None and is_needed:
            check_tensor(value, _shape_of(key, parameter), name, key)
            result[key] = value
    if entry.get("master") is not None:
        check_tensor(entry["master"], parameter.shape, name, "master", _MASTER_DTYPES)
        result["master"] = entry["master"]
    if result or "step" in entry:
        result["step"] = _step(entry, name, rule)
    return result


def _shape_of(key: str, parameter: torch.Tensor) -> torch.Size:
    return torch.Size([_FACTORS[key](parameter)]) if key in _FACTORS else parameter.shape


def fresh_entry(
    rule: str, parameter: torch.Tensor, group: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """What torch's class has as the state of a parameter before its first step."""
    if rule != "Adagrad":
        return {}
    start = torch.full_like(
        parameter, group["initial_accumulator_value"], dtype=torch.float32, device="cpu"
    )
    return {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu"), "sum": start}


def generic_entry(
    entry: Mapping[str, Any], parameter: torch.Tensor, name: str, expected: dict[str, bool] | None
) -> dict[str, Any]:
    """The entry as the generic path takes it; `expected` tells the base class's keys."""
    own = {key: value for key, value in entry.items() if key != "master"}
    if expected is not None and own and set(own) != set(expected):
        missing, extra = set(expected) - set(own), set(own) - set(expected)
        fail(f"the state of '{name}' lacks {sorted(missing)} and has {sorted(extra)} too many")
    for key, has_shape in (expected or {}).items():
        if has_shape and own:
            check_tensor(own[key], parameter.shape, name, key)
    if entry.get("master") is not None:
        check_tensor(entry["master"], parameter.shape, name, "master", (torch.float32,))
    return dict(entry)


def check_tensor(value: Any, shape: torch.Size, name: str, key: str, dtypes: tuple = ()) -> None:
    """Raises ValueError unless `value` is a tensor of that shape and of one of `dtypes` (empty:
    any floating-point type)."""
    if not isinstance(value, torch.Tensor):
        fail(f"'{key}' of '{name}' is a {type(value).__name__}, not a tensor")
    if value.shape != shape:
        fail(f"'{key}' of '{name}' has shape {tuple(value.shape)}, not {tuple(shape)}")
    if value.dtype not in dtypes if dtypes else not value.is_floating_point():
        wanted = " or ".join(map(str, dtypes)) or "a floating-point type"
        fail(f"'{key}' of '{name}' has dtype {value.dtype}, not {wanted}")


def _step(entry: Mapping[str, Any], name: str, rule: str) -> torch.Tensor:
    if "step" not in entry:
        if rule in NEEDS_STEP:
            fail(f"the state of '{name}' lacks 'step'")
        return torch.tensor(1.0, dtype=torch.float32, device="cpu")
    value = entry["step"]
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        fail(f"'step' of '{name}' has shape {tuple(value.shape)}, not ()")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (number >= 0 and number == math.floor(number) and math.isfinite(number)):
        fail(f"'step' of '{name}' is {value!r}, not a count")
    return torch.tensor(number, dtype=torch.float32, device="cpu")


def describe(
    seed: int, class_name: str, state_format: str, masters: list[str], stepped: list[int]
) -> dict[str, Any]:
    """The top-level entry "outboard": plain types, so that weights_only=True reads it."""
    return {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "optimizer_class": class_name,
        "state_format": state_format,
        "masters": masters,
        "stepped": stepped,
    }


def check_description(own: Any, count: int) -> None:
    """Raises ValueError unless the entry "outboard" is one that this version reads."""
    version = own.get("format_version") if isinstance(own, Mapping) else None
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        fail(
            f"the entry 'outboard' has format version {version!r}, this library reads up to "
            f"{FORMAT_VERSION}",
            "upgrade outboard, or remove the entry to load without masters",
        )
    stepped = own.get("stepped", [])
    if not isinstance(stepped, list) or not all(
        isinstance(i, int) and 0 <= i < count for i in stepped
    ):
        fail("the entry 'outboard' lists parameters that do not exist")
