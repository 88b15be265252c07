"""Steps that can be captured in CUDA graphs (LowBitOptimizer with capturable=True): which
hyper-parameters are numbers, to be sent to the device, and which are tensors there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from . import hyper
from .hyper import WHO

if TYPE_CHECKING:
    from ._engine_optimizer import EngineOptimizer


def split(group: Mapping[str, Any], rule: str) -> tuple[list[float], dict[int, torch.Tensor]]:
    """The group's values in the rule's order, and the tensors among them that lie beside the
    parameters by their index; in the list defaults stand in their places."""
    values: list[float] = []
    tensors: dict[int, torch.Tensor] = {}
    defaults = torch.ops.outboard.hyper_defaults(rule)
    device = group["params"][0].device.type if group["params"] else None
    for index, path in enumerate(hyper.rule_keys(rule)):
        value = _value(group, path)
        if isinstance(value, torch.Tensor) and value.device.type == device:
            tensors[index] = value
            values.append(defaults[index])
        else:
            values.append(hyper.read(group, path))
    return values, tensors


def enqueue_step(optimizer: EngineOptimizer, group_of: list[int], scale: Any, found_inf: Any):
    """The optimizer's step, captured or not. Waits for nothing."""
    if scale is not None or found_inf is not None:
        raise ValueError(
            f"[{WHO}] a gradient scaler gave grad_scale or found_inf to an optimizer with "
            "capturable=True, which unscales nothing; unscale and look for overflow before step()"
        )
    optimizer._engine.enqueue_step(*_request(optimizer, group_of))


def update(optimizer: EngineOptimizer) -> None:
    """Enqueues what changed in the groups, for replays that come later."""
    for group in optimizer.param_groups:
        optimizer._base.check_flags(group)
    group_of = optimizer._registry.group_numbers(optimizer.param_groups)
    optimizer._engine.update_hyper(*_request(optimizer, group_of))


def refuse(optimizer: EngineOptimizer, what: str, instead: str) -> None:
    """Raises RuntimeError for what needs the host, if the optimizer is capturable."""
    if optimizer._options.capturable:
        raise RuntimeError(
            f"[{WHO}] {what} needs the host, and this optimizer has capturable=True; use {instead}"
        )


def _request(optimizer: EngineOptimizer, group_of: list[int]) -> tuple[Any, ...]:
    values, places, tensors = [], [], []
    for number, group in enumerate(optimizer.param_groups):
        numbers, on_device = split(group, optimizer._base.rule_of(group))
        values.append(numbers)
        for index, tensor in on_device.items():
            places += [number, index]
            tensors.append(tensor.detach())
    return values, group_of, places, tensors


def _value(group: Mapping[str, Any], path: str) -> Any:
    name, _, item = path.partition(".")
    value = group.get(name)
    return value[int(item)] if item and isinstance(value, (tuple, list)) else value
