"""CPUOffloadOptimizer: a torch.optim.Optimizer whose masters and state live in host memory.

The native engine moves and computes; this file keeps torch's contract around it (groups, hooks,
closures; state dicts are in _state_dicts.py). No arithmetic on weights here.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import hyper
from ._amp import ScalerBridge, scaling_of
from ._base_class import BaseClass
from ._options import OffloadOptions, check_format, check_max_norm
from ._registry import Registry
from ._state_dicts import StateDicts
from .generic import GenericPath
from .hyper import WHO
from .stats import Stats


class CPUOffloadOptimizer(StateDicts):
    """Trains CUDA parameters with master weights and optimizer state in host memory.

    Gradients are copied to the host while backward runs; step() updates them there chunk by chunk
    and returns once the last weight copy is enqueued: the current CUDA stream waits for it, the
    device is not synchronised. Parameters on the CPU are updated in place. Not thread safe.

    Arguments:
        params: as any torch optimizer takes them, names included.
        optimizer_class: torch.optim.AdamW, Adam, SGD, Adagrad, RMSprop and outboard.Lion, AdEMAMix,
            LAMB, LARS have native rules; any other class runs on fp32 host masters. Its keyword arguments
            follow as ours.
        offload_gradients: free a device gradient once it is copied; the host adds up further
            backwards in fp32. Clip with max_grad_norm or this class's clip_grad_norm_ then.
        min_offload_elements: smaller parameters stay resident (state on the device).
        master: "auto" (split for bf16, fp32 for fp16), "split", "fp32", "stochastic" or "none".
        state_format: how moments are stored, e.g. "fp32" or "bf16".
        max_grad_norm: clip every step's global norm to this.
        skip_nonfinite: a step with an Inf or NaN gradient changes nothing, and is counted.
        threads: compute threads of the host update; None chooses.
        pin_memory: register transfer memory with CUDA.
        seed: of stochastic rounding.
        resident: parameters, names or name patterns (as in fnmatch) that stay resident.
        fused_amp: take grad_scale and found_inf from a GradScaler instead of being unscaled.
        chunk_elements: unit of pipeline work; None chooses.
        simulate: [seed, delay_us, poison] treats CPU parameters as if they were on a device.

    A group may have its own "master" and "state_format". `foreach` and `fused` are accepted and
    choose nothing here; `capturable` and `differentiable` are refused. A learning rate tensor on a
    device is waited for at each step. `state` holds live views; assign an empty dict to reset it.
    """

    def __init__(
        self,
        params: Any,
        optimizer_class: type = torch.optim.AdamW,
        *,
        offload_gradients: bool = False,
        min_offload_elements: int = 4096,
        master: str = "auto",
        state_format: str = "fp32",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = True,
        threads: int | None = None,
        pin_memory: bool = True,
        seed: int = 0,
        resident: Any = (),
        fused_amp: bool = False,
        chunk_elements: int | None = None,
        simulate: Any = None,
        **base_options: Any,
    ):
        own = {name: value for name, value in locals().items() if name in OffloadOptions.names()}
        self._options = OffloadOptions(**own)
        self._arguments = {"optimizer_class": optimizer_class, **own, **base_options}
        self._base = BaseClass(optimizer_class, base_options, OffloadOptions.names())
        self._engine = self._options.make_engine()
        self._generic = GenericPath(self._base, self._engine)
        self._scaler = ScalerBridge()
        self._registry = Registry(self._base.rule_of)
        self._state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        self._state_is_stale = False
        self._clip_once: float | None = None
        self._accumulating = 0
        self._is_built = False
        super().__init__(params, copy.copy(self._base.defaults))
        if not self._registry.parameters:
            raise ValueError(f"[{WHO}] the parameter groups are all empty; give parameters")
        self._options.check_resident(
            zip(self._registry.parameters, self._registry.names, strict=True)
        )
        self._is_built = True

    # ---- Groups ---------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, at any time. Raises ValueError for duplicates, an empty group after
        construction, or values out of range, and leaves the optimizer as it was."""
        self._registry.check_duplicates(param_group)
        super().add_param_group(param_group)
        try:
            if self._is_built and not self.param_groups[-1]["params"]:
                raise ValueError(f"[{WHO}] the added group has no parameters; give at least one")
            self._register(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise
        self._warn()

    def _register(self, group: dict[str, Any]) -> None:
        parameters = group["params"]
        self._base.check_flags(group)
        state_format = group.get("state_format", self._options.state_format)
        master = group.get("master", self._options.master)
        check_format(state_format, master)
        number = len(self.param_groups) - 1
        names = group.get("param_names") or [
            f"param_groups[{number}][{i}]" for i in range(len(parameters))
        ]
        rule = self._base.rule_of(group)
        self._generic.check(group)
        if not parameters:
            return
        first = self._engine.add_parameters(
            parameters,
            list(names),
            [self._options.is_resident(p, n) for p, n in zip(parameters, names, strict=True)],
            rule,
            self._values(group, rule),
            state_format,
            "none" if master == "stochastic" else master,
        )
        if not rule:
            self._generic.add(first, group)
        self._registry.add(first, parameters, list(names), rule)
        self._state_is_stale = True

    @staticmethod
    def _values(group: dict[str, Any], rule: str) -> list[float]:
        return hyper.to_list(group, hyper.rule_keys(rule)) if rule else []

    # ---- Steps ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns the closure's loss.

        Hyper-parameters are read from the groups now. Gradients changed since backward are sent
        again. An error of the engine's driver thread is raised here or by the next call.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._scaler.take_back()
        scale, found_inf = scaling_of(self, self._options.offload_gradients)
        self._scaler.note_unscaling(scale, self._registry.parameters)
        for group in self.param_groups:
            self._base.check_flags(group)
        group_of = self._registry.group_numbers(self.param_groups)
        values = [self._values(group, self._base.rule_of(group)) for group in self.param_groups]
        with torch.profiler.record_function("outboard.begin_step"):
            self._engine.refresh_hooks()
            is_taken = self._engine.begin_step(values, group_of, self._max_norm(), scale, found_inf)
        try:
            if is_taken and not self._base.is_native:
                self._step_generic(group_of)
        finally:
            with torch.profiler.record_function("outboard.finish_step"):
                self._engine.finish_step()
            self._clip_once = None
            self._state_is_stale = True
        self._warn()
        return loss

    def _step_generic(self, group_of: list[int]) -> None:
        factor = self._engine.gradient_scale()
        groups = {index: self.param_groups[number] for index, number in enumerate(group_of)}
        with torch.profiler.record_function(f"outboard.generic#{self._base.cls.__name__}"):
            self._generic.step(groups, factor)

    def _max_norm(self) -> float:
        """The norm to clip the coming step to; 0: none."""
        wishes = [self._options.max_grad_norm, self._clip_once]
        return min(
            (check_max_norm("max_grad_norm", w) for w in wishes if w and w < math.inf), default=0.0
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; also forgets gradients that have been copied but not used."""
        self._scaler.take_back()
        self._engine.discard_gradients()
        self._clip_once = None
        super().zero_grad(set_to_none)

    def clip_grad_norm_(
        self,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        *,
        grad_scale: Any = None,
    ) -> torch.Tensor:
        """Clips the coming step to `max_norm`; returns the gradients' global 2-norm before it.

        Blocks until the gradients have arrived. `grad_scale`: the loss scale that they still
        carry, as a number or tensor. The gradients themselves are left as they are.
        """
        if float(norm_type) != 2.0:
            raise ValueError(f"[{WHO}] clip_grad_norm_ has norm_type {norm_type}; only 2.0 exists")
        check_max_norm("max_norm", max_norm)
        if grad_scale is not None:
            grad_scale = torch.as_tensor(grad_scale, dtype=torch.float32)
        norm = self._engine.gradient_norm(grad_scale)
        if error_if_nonfinite and not math.isfinite(norm):
            raise RuntimeError(f"[{WHO}] the gradients' norm is {norm}; nothing was clipped")
        self._clip_once = min(float(max_norm), self._clip_once or math.inf)
        return torch.tensor(norm, dtype=torch.float32, device="cpu")

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Around every backward of a step but the last: nothing is sent that the next backward
        changes again. Optional; results are the same without it."""
        self._accumulating += 1
        self._engine.set_accumulating(True)
        try:
            yield
        finally:
            self._accumulating -= 1
            self._engine.set_accumulating(self._accumulating > 0)

    def synchronize(self) -> None:
        """Blocks until every weight on the device is current. Training never needs it."""
        self._engine.synchronize()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by GradScaler.step() before it looks for overflow."""
        self._scaler.asked()
        if self._options.offload_gradients:
            self._scaler.lend(self._engine, self._offloaded())
        return self._options.fused_amp or self._options.offload_gradients

    def _offloaded(self) -> list[torch.Tensor]:
        return [
            p
            for i, p in enumerate(self._registry.parameters)
            if self._engine.placement(i) == "host"
        ]

    # ---- Reports --------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Bytes by kind, seconds of the last step, elements by placement. Synchronises nothing."""
        elements: dict[str, int] = {}
        for index, parameter in enumerate(self._registry.parameters):
            place = self._engine.placement(index)
            elements[place] = elements.get(place, 0) + parameter.numel()
        return Stats.from_flat(self._engine.stats(), elements)

    def __repr__(self) -> str:
        places = ", ".join(
            f"{count} elements {place}" for place, count in self.stats().elements.items()
        )
        masters = sorted(
            {
                self._engine.master_format(i) if rule else "fp32"
                for i, rule in enumerate(self._registry.rules)
            }
        )
        return (
            f"{super().__repr__()}\n{self._base.name}: {places}; state "
            f"{self._options.state_format}, master {'/'.join(masters)}"
        )

    def _warn(self) -> None:
        for text in self._engine.warnings():
            warnings.warn(text, stacklevel=3)
