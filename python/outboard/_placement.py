"""Where the state of each parameter goes: what the user says first, sizes next, the planner last.

The planner's cost model is native (docs/planning.md); no arithmetic on bytes or times here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from . import _formats
from .hyper import WHO

if TYPE_CHECKING:
    from ._options import OffloadOptions
    from .plan import Machine, PlanWish

PLACEMENTS = ("auto", "host", "streamed", "resident")
LEAST_STREAMED_ELEMENTS = 65536  # below it, five copies each way take longer than their bytes
_MASTERS = {"none": "stochastic"}


def checked_placements(placement: Any) -> list[tuple[Any, str]]:
    """Pairs of what is meant (None: every other parameter) and where it goes."""
    wishes = placement.items() if isinstance(placement, Mapping) else [(None, placement)]
    for wish, place in wishes:
        known = PLACEMENTS if wish is None else PLACEMENTS[1:]
        if place not in known:
            raise ValueError(f"[{WHO}] placement is {place!r}; give one of {list(known)}")
        if wish is not None and not isinstance(wish, (str, torch.Tensor)):
            raise TypeError(
                f"[{WHO}] placement holds {wish!r}; give parameters, names or name patterns"
            )
    return list(wishes)


def places_of(
    options: OffloadOptions,
    named: Sequence[tuple[torch.Tensor, str]],
    rules: Sequence[str],
    master: str,
    formats: Sequence[_formats.FormatWish],
) -> list[str]:
    """ "host", "streamed" or "resident" for each parameter of a group. `rules`: "" if not native.

    May measure the machine, once per process, if "auto" is left to decide.
    """
    places = [
        _place_of(options, parameter, name, rule)
        for (parameter, name), rule in zip(named, rules, strict=True)
    ]
    # Streamed gradients stay on the device until their update. Whoever gives gradients away to have
    # that memory back is not made to wait for it.
    places = [
        "host" if place == "auto" and not may_plan(options, rule) else place
        for place, rule in zip(places, rules, strict=True)
    ]
    open_ = [i for i, place in enumerate(places) if place == "auto"]
    if not open_:
        return places
    chosen = ["host"] * len(open_)
    parameters = [named[i][0] for i in open_]
    if has_machine(options, parameters[0]):
        chosen = _planned(options, parameters, rules[open_[0]], master, formats[open_[0]].name)
    for i, place in zip(open_, chosen, strict=True):
        places[i] = place
    return places


def _place_of(options: OffloadOptions, parameter: torch.Tensor, name: str, rule: str) -> str:
    if any(_formats.fits(wish, parameter, name) for wish in options.resident):
        return "resident"
    for wish, place in options.placement_wishes:
        if wish is not None and _formats.fits(wish, parameter, name):
            return place
    usual = next((place for wish, place in options.placement_wishes if wish is None), "auto")
    elements = parameter.numel()
    if elements < options.min_offload_elements or usual == "resident":
        return "resident"
    if usual == "streamed" and not rule:
        return "host"
    if usual == "streamed" and elements < LEAST_STREAMED_ELEMENTS:
        return "resident"
    return "host" if elements == 0 else usual


def may_plan(options: OffloadOptions, rule: str) -> bool:
    """Whether the planner may choose for parameters of this rule, if nobody else does."""
    if not rule or options.offload_gradients:
        return False
    # Parameters that are looked at as a whole would have to be on the device at once.
    return not torch.ops.outboard.needs_whole(rule)


def has_machine(options: OffloadOptions, parameter: torch.Tensor) -> bool:
    """Whether there is one to plan for."""
    return options.machine is not None or parameter.is_cuda


def _planned(
    options: OffloadOptions,
    parameters: Sequence[torch.Tensor],
    rule: str,
    master: str,
    state_format: str,
) -> list[str]:
    from . import plan

    dtype = parameters[0].dtype
    if dtype == torch.float32:
        master = "weight"  # the option is about other weights
    elif master == "auto":
        master = "split" if dtype == torch.bfloat16 else "fp32"
    # How long forward and backward take is not known yet: the mixture that is updated soonest.
    wish = replace(
        wish_of(options, parameters[0], rule, master, state_format),
        is_attached=False,
        device_state_bytes=options.device_state_bytes,
    )
    machine = machine_of(options, parameters[0], wish)
    return plan.make_plan([p.numel() for p in parameters], machine, wish).placements


def wish_of(
    options: OffloadOptions, parameter: torch.Tensor, rule: str, master: str, state_format: str
) -> PlanWish:
    """What the planner has to know of the options and of parameters of this kind."""
    from . import plan

    return plan.PlanWish(
        rule=rule,
        state_format=state_format,
        dtype=str(parameter.dtype).removeprefix("torch."),
        master=_MASTERS.get(master, master),
        needs_norm=options.needs_norm,
        offload_gradients=False,
        host_bytes=options.host_bytes,
    )


def machine_of(options: OffloadOptions, parameter: torch.Tensor, wish: PlanWish) -> Machine:
    """The machine that was given, else the parameter's, measured once per process."""
    from . import plan

    return options.machine or plan.measured_machine(
        parameter.device.index or 0,
        rule=wish.rule,
        state_formats=(wish.state_format,),
        dtype=wish.dtype,
        master=wish.master,
        threads=options.threads or 0,
    )
