"""LowBitOptimizer: optimizer state in 8 or 4 bits beside the weights, on a GPU or the CPU; and one
class per rule and format (AdamW8bit, Lion4bit, …), made from the table at the end. Options and
names only; the rest is in _engine_optimizer.py.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from . import _capturable, optim
from ._base_class import NATIVE, BaseClass
from ._engine_optimizer import EngineOptimizer
from ._options import LowBitOptions
from .hyper import WHO

_OWN_ARGUMENTS = """\
        state_format: how state is stored: "8bit", "4bit", "8bit/4bit", "fp8", "bf16", "fp32" and
            so on; "a/b" stores signed state as in a and second moments as in b.
"""
_SHARED_ARGUMENTS = """        block_size: elements that share a scale; None: the format's default.
        min_quantized_elements: smaller parameters have fp32 state.
        state_formats: other formats for some parameters: {name pattern or parameter: name, or
            (name, block size)}. The first that fits counts; each must fit.
        master: "auto" (split for bf16: 16 bits more make an exact fp32 master; fp32 for fp16),
            "split", "split8" (8 bits more), "fp32", "stochastic" or "none".
        max_grad_norm: clip every step's global norm to this.
        skip_nonfinite: a step with an Inf or NaN gradient changes nothing, and is counted.
        threads: compute threads of the update of CPU parameters; None chooses.
        seed: of stochastic rounding.
        fused_amp: take grad_scale and found_inf from a GradScaler instead of being unscaled.
        factored_second_moment: with AdamW, parameters of two and more dimensions keep a mean for
            each row and column (size(0) rows) in the place of exp_avg_sq.
        capturable: step() can be captured in a CUDA graph; see update_hyperparameters().
        simulate: [seed, delay_us, poison] treats CPU parameters as if they were on a device.
"""


class LowBitOptimizer(EngineOptimizer):
    __doc__ = f"""Keeps optimizer state in few bits, where the parameters are.

    Parameters on a GPU are updated there by one launch per group of formats, without anything on
    the host; parameters on the CPU are updated in place. All parameters of one optimizer lie on one
    GPU, or on the CPU. step() does not synchronise the device unless max_grad_norm, skip_nonfinite
    or fused_amp need a value from it, or a learning rate is a tensor on it. Not thread safe.

    Arguments:
        params: as any torch optimizer takes them, names included.
        optimizer_class: a class with a native rule: torch.optim.AdamW, Adam, SGD, Adagrad, RMSprop,
            outboard.Lion, AdEMAMix, LAMB, LARS. Its keyword arguments follow as ours.
{_OWN_ARGUMENTS}{_SHARED_ARGUMENTS}
    A group may have its own "master", "state_format" and "block_size". `foreach` and `fused` are
    accepted and choose nothing here; `differentiable` is refused. `state` shows fp32 copies;
    assign an empty dict to reset it.

    capturable=True: for CUDA parameters of one device. Steps read hyper-parameters and step counts
    from device memory, so that torch.cuda.graph captures them and every replay is a step. Take one
    step before the capture. Gradients keep their addresses, as for torch's own. max_grad_norm,
    skip_nonfinite, fused_amp and clip_grad_norm_() are refused; results are the same bits.
    """

    def __init__(
        self,
        params: Any,
        optimizer_class: type = torch.optim.AdamW,
        *,
        state_format: str = "8bit",
        block_size: int | None = None,
        min_quantized_elements: int = 4096,
        state_formats: Any = None,
        master: str = "auto",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        threads: int | None = None,
        seed: int = 0,
        fused_amp: bool = False,
        factored_second_moment: bool = False,
        capturable: bool = False,
        simulate: Any = None,
        **base_options: Any,
    ):
        own = {name: value for name, value in locals().items() if name in LowBitOptions.names()}
        arguments = {"optimizer_class": optimizer_class, **own, **base_options}
        if capturable is True and "capturable" in inspect.signature(optimizer_class).parameters:
            base_options["capturable"] = True  # what its groups show
        options = LowBitOptions(**own)
        base = BaseClass(
            optimizer_class,
            base_options,
            LowBitOptions.names(),
            capturable=options.capturable,
            factored=options.factored_second_moment,
        )
        if not base.is_native:
            raise ValueError(
                f"[{WHO}] {base.name} has no native rule, and LowBitOptimizer runs native rules "
                f"only ({', '.join(NATIVE.values())}); use CPUOffloadOptimizer"
            )
        super().__init__(params, base, options, arguments)

    def update_hyperparameters(self) -> None:
        """With capturable=True: sends the groups' values to the device, for replays of a captured
        step that are enqueued on the current stream later. Weights that were written to since the
        last step are taken over as well. step() does both itself.

        A learning rate that is a tensor on the device needs no call if it was one at the capture:
        replays read it, so change it in place (torch's schedulers do). Raises RuntimeError without
        capturable=True or inside a capture, ValueError for values out of range.
        """
        if not self._options.capturable:
            raise RuntimeError(
                f"[{WHO}] update_hyperparameters() is for capturable=True; without it step() reads "
                "the groups"
            )
        _capturable.update(self)


# ---- Classes by name ----------------------------------------------------------------------------

# What chooses among torch's implementations of one formula, or cannot be honoured.
_LEFT_OUT = ("foreach", "fused", "differentiable")
_SUFFIXES = {"8bit": "8bit", "4bit": "4bit", "fp8": "Fp8"}
_TABLE = (
    (torch.optim.AdamW, ("8bit", "4bit", "fp8")),
    (torch.optim.Adam, ("8bit", "4bit", "fp8")),
    (optim.Lion, ("8bit", "4bit")),
    (torch.optim.SGD, ("8bit", "4bit")),
    (torch.optim.Adagrad, ("8bit",)),
    (torch.optim.RMSprop, ("8bit",)),
    (optim.AdEMAMix, ("8bit",)),
    (optim.LAMB, ("8bit",)),
    (optim.LARS, ("8bit",)),
)


def _signature(base: type) -> inspect.Signature:
    """The base class's own arguments, then LowBitOptimizer's by keyword."""
    kinds = inspect.Parameter
    theirs = [
        p
        for p in inspect.signature(base.__init__).parameters.values()
        if p.name not in (*_LEFT_OUT, "capturable")
    ]
    ours = [
        p
        for p in inspect.signature(LowBitOptimizer.__init__).parameters.values()
        if p.name in LowBitOptions.names() and p.name != "state_format"
    ]
    by_place = [p for p in theirs if p.kind is not kinds.KEYWORD_ONLY]
    by_keyword = [p for p in theirs if p.kind is kinds.KEYWORD_ONLY]
    return inspect.Signature([*by_place, *by_keyword, *ours])


def _named_class(base: type, state_format: str) -> type:
    """A subclass of LowBitOptimizer for one rule and one format."""
    name = f"{base.__name__}{_SUFFIXES[state_format]}"
    signature = _signature(base)

    def __init__(self, *args, **kwargs):
        try:
            given = dict(signature.bind(self, *args, **kwargs).arguments)
        except TypeError as error:
            takes = ", ".join(list(signature.parameters)[1:])
            raise TypeError(f"[{WHO}] {name}: {error}; it takes {takes}") from None
        given.pop("self")
        params = given.pop("params")
        LowBitOptimizer.__init__(self, params, base, state_format=state_format, **given)
        self._arguments = given

    __init__.__signature__ = signature
    __init__.__qualname__ = f"{name}.__init__"
    home = "torch.optim" if base.__module__.startswith("torch.") else "outboard"
    return type(
        name,
        (LowBitOptimizer,),
        {
            "__init__": __init__,
            "__module__": __name__,
            "__qualname__": name,
            "__doc__": f"""{home}.{base.__name__} with state_format="{state_format}".

    Takes what {home}.{base.__name__} takes ({", ".join(_LEFT_OUT)} left out), and what
    LowBitOptimizer takes:

{_SHARED_ARGUMENTS}
    See LowBitOptimizer for where state lives and when step() synchronises.
    """,
        },
    )


NAMED_CLASSES = {
    cls.__name__: cls
    for cls in (_named_class(base, name) for base, names in _TABLE for name in names)
}
globals().update(NAMED_CLASSES)
__all__ = ["LowBitOptimizer", *NAMED_CLASSES]
