"""What CPUOffloadOptimizer and LowBitOptimizer share: a torch.optim.Optimizer around the engine.

The engine moves and computes; this file keeps torch's contract around it (groups, hooks, closures;
state dicts are in _state_dicts.py). No arithmetic on weights here, and no choice of placement.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from . import _capturable, hyper
from ._amp import ScalerBridge, scaling_of
from ._base_class import BaseClass
from ._formats import matching
from ._options import EngineOptions, check_master, check_max_norm
from ._registry import Registry
from ._state_dicts import StateDicts
from .generic import GenericPath
from .hyper import WHO
from .stats import Stats
from .trace_recorder import TraceRecorder

if TYPE_CHECKING:
    from ._attach import Attachment


class EngineOptimizer(StateDicts):
    """The two classes for users derive from this one and add their options. Not thread safe."""

    def __init__(self, params: Any, base: BaseClass, options: EngineOptions, arguments: Any):
        """`arguments`: what the derived class is made anew with, beside the groups."""
        self._options = options
        self._arguments = arguments
        self._base = base
        self._engine = options.make_engine()
        self._generic = GenericPath(self._base, self._engine)
        self._scaler = ScalerBridge()
        self._registry = Registry(self._base.rule_of)
        self._state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        self._state_is_stale = False
        self._holds_copies = False
        self._shows_exact = False
        self._clip_once: float | None = None
        self._accumulating = 0
        self._attachment: Attachment | None = None
        self._schedule = ("at_step", "no model is attached")
        self._is_built = False
        super().__init__(params, copy.copy(self._base.defaults))
        if not self._registry.parameters:
            raise ValueError(f"[{WHO}] the parameter groups are all empty; give parameters")
        self._options.check_wishes(
            list(zip(self._registry.parameters, self._registry.names, strict=True))
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
        master = group.get("master", self._options.master)
        check_master(master)
        number = len(self.param_groups) - 1
        names = group.get("param_names") or [
            f"param_groups[{number}][{i}]" for i in range(len(parameters))
        ]
        rule = self._base.rule_of(group)
        self._generic.check(group)
        if not parameters:
            return
        named = list(zip(parameters, names, strict=True))
        formats = [self._options.format_of(p, n, group) for p, n in named]
        rules = [self._base.rule_for(group, p) for p in parameters]
        first = self._engine.add_parameters(
            parameters,
            list(names),
            self._options.places_of(named, rules, master, formats),
            rules,
            self._values(group, rule),
            [wish.name for wish in formats],
            [wish.block_size or 0 for wish in formats],
            self._options.min_quantized_elements,
            "none" if master == "stochastic" else master,
        )
        if not rule:
            self._generic.add(first, group)
        self._registry.add(first, parameters, list(names), rule, rules, formats)
        self._mark_stale()

    def _values(self, group: dict[str, Any], rule: str) -> list[float]:
        if self._options.capturable:
            return _capturable.split(group, rule)[0]
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
        if self._options.capturable:
            with torch.profiler.record_function("outboard.enqueue_step"):
                _capturable.enqueue_step(self, group_of, scale, found_inf)
            self._mark_stale()
            return loss
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
            self._mark_stale()
            if self._attachment is not None:
                self._attachment.step_taken()
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
        if not set_to_none:
            self._engine.wait_weights([])  # updates on the device may still read the gradients
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
        _capturable.refuse(self, "clip_grad_norm_", "torch.nn.utils.clip_grad_norm_ in the graph")
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

    # ---- State formats --------------------------------------------------------------------------

    def convert_state(
        self, state_format: str, block_size: int | None = None, *, parameters: Any = None
    ) -> None:
        """Stores state in another format from now on, and converts what it holds.

        `parameters`: parameters, names or name patterns; None for all. As at construction, those
        below min_quantized_elements keep fp32 state. Host memory that becomes free is kept for the
        same parameter's later formats (stats() counts what is held); device memory goes back to
        torch. Raises ValueError before anything changed; should memory run out, each parameter has
        either format, whole.
        """
        wish = self._options.checked_format(state_format, block_size)
        chosen = range(len(self._registry.parameters))
        if parameters is not None:
            chosen = matching(parameters, self._registry.parameters, self._registry.names)
        self._engine.convert_states(
            list(chosen),
            [wish.name] * len(chosen),
            [wish.block_size or 0] * len(chosen),
            self._options.min_quantized_elements,
        )
        for index in chosen:
            self._registry.formats[index] = wish
        self._mark_stale()

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
            if self._engine.placement(i) in ("host", "streamed")
        ]

    # ---- Reports --------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Bytes by kind, seconds of the last step, elements by placement. Synchronises nothing."""
        elements: dict[str, int] = {}
        for index, parameter in enumerate(self._registry.parameters):
            place = self._engine.placement(index)
            elements[place] = elements.get(place, 0) + parameter.numel()
        return Stats.from_flat(self._engine.stats(), elements, *self._schedule)

    def trace(self, path: str | os.PathLike, steps: int = 3) -> TraceRecorder:
        """Records the next `steps` steps and writes a Chrome/Perfetto trace to `path`.

        Use it alone or in a `with`; the result's `steps` then holds each step's breakdown. The
        command `outboard timeline` draws the file. Waits for the device before and after.
        """
        return TraceRecorder(self, self._engine, path, steps)

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
        formats: dict[str, int] = {}
        for index, parameter in enumerate(self._registry.parameters):
            name = self._engine.state_format(index)
            formats[name] = formats.get(name, 0) + parameter.numel()
        states = "; ".join(f"{count} elements {name}" for name, count in formats.items())
        return (
            f"{super().__repr__()}\n{self._base.name}: {places}; master {'/'.join(masters)}\n"
            f"State: {states}"
        )

    def _warn(self) -> None:
        for text in self._engine.warnings():
            warnings.warn(text, stacklevel=3)
