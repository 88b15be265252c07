"""The generic path: any torch optimizer class on the host's fp32 masters.

Each offloaded parameter has a base optimizer of its own, stepped as soon as its gradient is there;
its weight then travels back while the next one is computed. Parameters that stay where they are
(resident, small, or on the CPU) share one base optimizer that works on them directly.
"""

from __future__ import annotations

from typing import Any

import torch

from ._base_class import BaseClass


class GenericPath:
    """The base optimizers of one CPUOffloadOptimizer. Not thread safe."""

    def __init__(self, base: BaseClass, engine: Any):
        self._base = base
        self._engine = engine
        self._hosts: dict[int, torch.optim.Optimizer] = {}  # by parameter index
        self._direct: torch.optim.Optimizer | None = None
        self._direct_groups: list[dict[str, Any]] = []  # the user's, beside _direct's
        self._direct_parameters: dict[int, torch.Tensor] = {}

    def check(self, group: dict[str, Any]) -> None:
        """Lets the base class see a group's shapes and options without any memory."""
        if not self._base.is_native and group["params"]:
            self._base.over(
                [
                    torch.nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32))
                    for p in group["params"]
                ],
                group,
            )

    def add(self, first: int, group: dict[str, Any]) -> None:
        """Takes the parameters first, first + 1, … of `group`, which the engine has taken."""
        direct = []
        for index, parameter in enumerate(group["params"], first):
            if self._engine.placement(index) == "host":
                master = torch.nn.Parameter(self._engine.host_weight(index))
                self._hosts[index] = self._base.over([master], group)
            else:
                direct.append(parameter)
                self._direct_parameters[index] = parameter
        if direct:
            addition = self._base.over(direct, group)
            if self._direct is None:
                self._direct = addition
            else:
                self._direct.add_param_group(addition.param_groups[0])
            self._direct_groups.append(group)

    def step(self, groups_of: dict[int, dict[str, Any]], factor: float) -> None:
        """Updates every parameter that has a gradient. `factor` is what gradients that stayed with
        their parameters still have to be multiplied by."""
        self._step_direct(factor)
        # Backward makes the last parameters' gradients first.
        for index in sorted(self._engine.active(), reverse=True):
            if index in self._hosts:
                self._step_host(index, groups_of[index])

    def state(self, index: int) -> dict[str, Any]:
        """The base optimizer's state of a parameter, with its fp32 master; {} before a step."""
        state = dict(self._base_state(index))
        if state and index in self._hosts:
            state["master"] = self._engine.host_weight(index)
        return state

    def load(self, index: int, state: dict[str, Any]) -> None:
        """Replaces the state of a parameter by copies of what `state` holds; {} resets it."""
        state = dict(state)
        master = state.pop("master", None)
        optimizer = self._hosts.get(index, self._direct)
        parameter = self._key(index)
        if index in self._hosts and master is not None:
            self._engine.host_weight(index).copy_(master)
        current = optimizer.state.pop(parameter, {})
        if state:
            optimizer.state[parameter] = {
                key: _placed(value, parameter, key) for key, value in state.items()
            }
        elif current:
            fresh = self._base.over([parameter], optimizer.param_groups[0])
            if parameter in fresh.state:
                optimizer.state[parameter] = fresh.state[parameter]

    def expected(self, parameter: torch.Tensor, group: dict[str, Any]) -> dict[str, bool] | None:
        """Keys of the base class's state for such a parameter, each with whether its tensor has
        the parameter's shape. None if the class does not tell."""
        shape = [min(size, 2) for size in parameter.shape]
        probe = torch.nn.Parameter(torch.ones(shape))
        probe.grad = torch.ones(shape)
        try:
            optimizer = self._base.over([probe], group)
            _plain_step(optimizer)
        except Exception:  # a user's class may do anything on a probe
            return None
        return {
            key: isinstance(value, torch.Tensor) and value.shape == probe.shape and probe.dim() > 0
            for key, value in optimizer.state[probe].items()
        }

    def _step_host(self, index: int, group: dict[str, Any]) -> None:
        optimizer = self._hosts[index]
        master = optimizer.param_groups[0]["params"][0]
        _copy_values(group, optimizer.param_groups[0])
        master.grad = self._engine.host_gradient(index)
        _plain_step(optimizer)
        master.grad = None
        self._engine.return_weight(index)

    def _step_direct(self, factor: float) -> None:
        if self._direct is None:
            return
        for group, own in zip(self._direct_groups, self._direct.param_groups, strict=True):
            _copy_values(group, own)
        kept = [(p, p.grad) for p in self._direct_parameters.values() if p.grad is not None]
        try:
            if factor != 1.0 and kept:
                for parameter, gradient in kept:
                    parameter.grad = gradient * factor
            _plain_step(self._direct)
        finally:
            for parameter, gradient in kept:
                parameter.grad = gradient

    def _base_state(self, index: int) -> dict[str, Any]:
        optimizer = self._hosts.get(index, self._direct)
        return optimizer.state.get(self._key(index), {})

    def _key(self, index: int) -> torch.Tensor:
        if index in self._hosts:
            return self._hosts[index].param_groups[0]["params"][0]
        return self._direct_parameters[index]


def _copy_values(group: dict[str, Any], own: dict[str, Any]) -> None:
    own.update({k: v for k, v in group.items() if k not in ("params", "param_names")})


def _plain_step(optimizer: torch.optim.Optimizer) -> None:
    """The class's step without torch's wrapper, whose global hooks belong to the outer step."""
    step = type(optimizer).step
    getattr(step, "__wrapped__", step)(optimizer) if getattr(step, "hooked", False) else step(
        optimizer
    )


def _placed(value: Any, parameter: torch.Tensor, key: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if key == "step" or not value.is_floating_point() or value.shape != parameter.shape:
        return value.clone()
    return value.to(parameter.device, parameter.dtype, copy=True)
