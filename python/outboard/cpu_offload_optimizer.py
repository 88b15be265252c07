"""CPUOffloadOptimizer: a torch.optim.Optimizer whose masters and state live in host memory.

Its options and what they mean; the rest is in _engine_optimizer.py.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import torch

from ._base_class import BaseClass
from ._engine_optimizer import EngineOptimizer
from ._memory import lacking_memory
from ._options import OffloadOptions
from ._plan_check import Choice, PlanCheck
from .hyper import WHO
from .stats import Stats


class CPUOffloadOptimizer(EngineOptimizer):
    """Trains CUDA parameters with master weights and optimizer state in host memory.

    Gradients are copied to the host while backward runs and updates are made there chunk by chunk,
    or state passes through the device ("streamed"). Without more, step() returns once the last
    weight copy is enqueued: the current CUDA stream waits for it, the device is not synchronised.
    After attach(model), updates hide behind the next forward and behind backward, with the same
    results. Parameters on the CPU are updated in place. Not thread safe.

    Arguments:
        params: as any torch optimizer takes them, names included.
        optimizer_class: torch.optim.AdamW, Adam, SGD, Adagrad, RMSprop and outboard.Lion, AdEMAMix,
            LAMB, LARS have native rules; any other class runs on fp32 host masters. Its keyword
            arguments follow as ours.
        offload_gradients: free a device gradient once it is copied; the host adds up further
            backwards in fp32. Clip with max_grad_norm or this class's clip_grad_norm_ then.
        min_offload_elements: smaller parameters stay resident (state on the device).
        master: "auto" (split for bf16, fp32 for fp16), "split", "split8" (24 of fp32's 32 bits, one
            byte less per bf16 weight), "fp32", "stochastic" or "none".
        state_format: how state is stored: "fp32", "bf16", "8bit", "4bit", "8bit/4bit", "fp8" and so
            on; "a/b" stores signed state as in a and second moments as in b.
        block_size: elements that share a scale, in formats that have blocks; None: their default.
        min_quantized_elements: smaller parameters have fp32 state in the place of such formats.
        state_formats: other formats for some parameters: {name pattern or parameter: name, or
            (name, block size)}. The first that fits counts; each must fit.
        max_grad_norm: clip every step's global norm to this.
        skip_nonfinite: a step with an Inf or NaN gradient changes nothing, and is counted.
        threads: compute threads of the host update; None chooses.
        pin_memory: register transfer memory with CUDA.
        seed: of stochastic rounding.
        placement: "host" (the CPU updates), "streamed" (the GPU does; state passes through it,
            gradients stay there and are added up by autograd) or "auto" (the planner chooses;
            "host" with offload_gradients, so that gradients never stay; checked against measured
            iterations after attach, and corrected); or {name pattern or
            parameter: "host", "streamed" or "resident"}. Of "streamed", parameters below 65536
            elements are resident.
        schedule: "at_step", "next_forward", "in_backward" (both need attach) or "auto".
        accumulation_steps: backwards per step, if it is always the same: gradients are sent with
            the last. accumulate() says it each time, and neither is needed.
        machine: an outboard.plan.Machine; None measures this one when the planner needs it (under 2
            seconds, once per process).
        device_state_bytes: how much state the planner may leave on the device.
        host_bytes: how much host memory it may use; None: no limit.
        resident: parameters, names or name patterns (as in fnmatch) that stay resident.
        fused_amp: take grad_scale and found_inf from a GradScaler instead of being unscaled.
        factored_second_moment: with AdamW, parameters of two and more dimensions keep a mean for
            each row and column (size(0) rows) in the place of exp_avg_sq. The planner leaves them
            on the host.
        chunk_elements: unit of pipeline work; None chooses.
        poison_in_flight: for tests: weights that are on their way are NaN until they arrive.
        simulate: [seed, delay_us, poison] treats CPU parameters as if they were on a device.

    A group may have its own "master", "state_format" and "block_size". `foreach` and `fused` are
    accepted and choose nothing here; `capturable` and `differentiable` are refused. A learning rate
    tensor on a device is waited for at each step. `state` holds live views (fp32 copies of state in
    formats with blocks); assign an empty dict to reset it.
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
        block_size: int | None = None,
        min_quantized_elements: int = 4096,
        state_formats: Any = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = True,
        threads: int | None = None,
        pin_memory: bool = True,
        seed: int = 0,
        resident: Any = (),
        placement: Any = "auto",
        schedule: str = "auto",
        accumulation_steps: int | None = None,
        machine: Any = None,
        device_state_bytes: int = 0,
        host_bytes: int | None = None,
        fused_amp: bool = False,
        factored_second_moment: bool = False,
        chunk_elements: int | None = None,
        poison_in_flight: bool = False,
        simulate: Any = None,
        **base_options: Any,
    ):
        own = {name: value for name, value in locals().items() if name in OffloadOptions.names()}
        arguments = {"optimizer_class": optimizer_class, **own, **base_options}
        options = OffloadOptions(**own)
        base = BaseClass(
            optimizer_class,
            base_options,
            OffloadOptions.names(),
            factored=factored_second_moment,
        )
        super().__init__(params, base, options, arguments)
        self._plan_check = PlanCheck(self._options, self._registry, self._engine)

    # ---- Schedules ------------------------------------------------------------------------------

    def attach(self, model: torch.nn.Module) -> None:
        """Hides updates behind the model's next forward and backward, with the same results.

        Every forward then waits for the weights that it is about to read, as it gets to them; so do
        state_dict() of the model and steps of other optimizers over the same parameters. Whoever
        reads weights in another way calls synchronize() first. step() only decides about the step.
        `schedule` chooses between "next_forward" and "in_backward"; stats() says what was chosen,
        and why. Raises ValueError if the model has none of the parameters or is attached already.
        """
        if self._attachment is not None:
            raise ValueError(f"[{WHO}] a model is attached already; detach() first")
        from ._attach import Attachment  # it loads the compiler's front end, which takes a second

        self._attachment = Attachment(model, self._registry, self._engine, self._announce)
        self._set_schedule(*self._choose_schedule())
        if self._base.is_native:
            self._plan_check.start()

    def detach(self) -> None:
        """Undoes attach(). Blocks until every weight is current."""
        if self._attachment is None:
            return
        self._attachment.detach()
        self._attachment = None
        self._plan_check.stop()
        self._schedule = ("at_step", "no model is attached")
        self._engine.set_schedule("at_step")

    def step(self, closure: Any = None) -> Any:
        wanted = self._options.schedule
        if self._attachment is None and wanted in ("next_forward", "in_backward"):
            if not self._has_warned_of_schedule:
                warnings.warn(
                    f"[{WHO}] schedule is {wanted!r} and no model is attached, so updates are made "
                    "at step(); call optimizer.attach(model)",
                    stacklevel=3,
                )
            self._has_warned_of_schedule = True
        self._has_stepped = True
        self._plan_check.before_step()
        loss = super().step(closure)
        is_free = self._options.schedule == "auto" and not self._is_short_of_memory
        choice = self._plan_check.after_step(self._schedule[0], is_free)
        if choice is not None:
            self._follow(choice)
        return loss

    step.__doc__ = EngineOptimizer.step.__doc__
    _has_warned_of_schedule = False
    _has_stepped = False
    _has_checked_memory = False
    _is_short_of_memory = False

    def _follow(self, choice: Choice) -> None:
        """Moves parameters, between a step and the next forward."""
        changed = {i: p for i, p in choice.placements.items() if p != self._engine.placement(i)}
        # An image and a place for the gradient.
        parameters = self._registry.parameters
        wanted = sum(
            2 * parameters[i].numel() * parameters[i].element_size()
            for i, place in changed.items()
            if place == "host"
        )
        budget = self._options.host_bytes
        if budget is not None and self.stats().memory.host + wanted > budget:
            self._plan_check.stop("parameters do not move, because host_bytes leaves no room")
            return
        where = parameters[0].device
        if lacking := lacking_memory(host=wanted, device=choice.ring_bytes, where=where):
            self._plan_check.stop(f"parameters do not move: that {lacking}")
            return
        try:
            self._engine.set_placements(list(changed), list(changed.values()))
        except torch.OutOfMemoryError as error:
            self._plan_check.stop(f"parameters do not move: {error}")
            return
        self._plan_check.moved()
        self._has_checked_memory = False
        self._mark_stale()
        if self._options.schedule == "auto" and choice.schedule != self._schedule[0]:
            self._set_schedule(choice.schedule, "as planned from measured iterations")

    def stats(self) -> Stats:
        return replace(super().stats(), plan=self._plan_check.report)

    stats.__doc__ = EngineOptimizer.stats.__doc__

    def _set_schedule(self, name: str, reason: str) -> None:
        self._schedule = (name, reason)
        self._engine.set_schedule(name)
        logging.getLogger("outboard").info("schedule %s: %s", name, reason)

    def _choose_schedule(self) -> tuple[str, str]:
        options = self._options
        if not self._base.is_native:
            return "at_step", f"{self._base.name} has no native rule"
        if options.schedule != "auto":
            return options.schedule, "as given"
        places = {self._engine.placement(i) for i in range(len(self._registry.parameters))}
        if "streamed" in places:
            return "in_backward", "updates of streamed parameters can begin as gradients appear"
        if "host" in places and options.offload_gradients and not options.needs_norm:
            return "in_backward", "no update has to wait for all gradients"
        return "next_forward", "updates on the host need the norm, and hide behind the forward"

    def _announce(self) -> None:
        """What the coming step will be made with, as far as the groups say now."""
        self._plan_check.forward()
        # Nothing begins early in the first step, which shows what else needs memory.
        if self._schedule[0] != "in_backward" or not self._has_stepped:
            return
        if not self._has_checked_memory:
            self._has_checked_memory = True
            self._check_memory()
        values = [self._values(group, self._base.rule_of(group)) for group in self.param_groups]
        numbers = self._registry.group_numbers(self.param_groups)
        self._engine.announce_step(values, numbers, self._max_norm())

    def _check_memory(self) -> None:
        """Gives tentative updates up if what they need would take the last memory."""
        options = self._options
        is_for_good = options.offload_gradients and not options.needs_norm
        streamed = [
            p
            for i, p in enumerate(self._registry.parameters)
            if self._engine.placement(i) == "streamed"
        ]
        if is_for_good or not streamed:
            return
        held = self._engine.stats()
        lacking = lacking_memory(
            host=int(held["host_masters"] + held["host_state"]),  # second copies, at most
            device=sum(p.numel() * p.element_size() for p in streamed),
            where=streamed[0].device,
        )
        if not lacking:
            return
        self._is_short_of_memory = True
        reason = f"updates in backward {lacking}"
        self._set_schedule("next_forward", reason)
        if options.schedule == "in_backward":
            warnings.warn(f"[{WHO}] {reason}: they hide behind the next forward", stacklevel=2)
