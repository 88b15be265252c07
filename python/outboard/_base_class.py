"""What the user's base optimizer class means here: its defaults, its native rule (or none), and
the flags that cannot be honoured. Constructs the class on a dummy, so that torch validates.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from .hyper import WHO
from .optim import LAMB, LARS, AdEMAMix, Lion

# Exact classes: a subclass may compute something else, and runs through the generic path.
NATIVE = {
    torch.optim.AdamW: "AdamW",
    torch.optim.Adam: "Adam",
    torch.optim.SGD: "SGD",
    torch.optim.Adagrad: "Adagrad",
    torch.optim.RMSprop: "RMSprop",
    Lion: "Lion",
    AdEMAMix: "AdEMAMix",
    LAMB: "LAMB",
    LARS: "LARS",
}
# AdamW with row and column means in the place of a second moment; see rule_for().
FACTORED = "AdamWFactored"
# A state tensor that exists only while a group's option is set.
NEEDED_BY = {
    "max_exp_avg_sq": "amsgrad",
    "momentum_buffer": "momentum",
    "grad_avg": "centered",
}
# Need the whole model at once, or gradients that are refused here.
WHOLE_MODEL = {
    torch.optim.LBFGS: "it searches along a line over all parameters at once",
    torch.optim.SparseAdam: "it takes sparse gradients only",
}


class BaseClass:
    """The base optimizer class with its options. Immutable; no parameters."""

    def __init__(
        self,
        cls: type,
        options: Mapping[str, Any],
        own_options: list[str],
        capturable: bool = False,
        factored: bool = False,
    ):
        """`factored`: matrices keep row and column means of their squared gradients."""
        if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
            raise TypeError(
                f"[{WHO}] optimizer_class is {cls!r}; give a subclass of torch.optim.Optimizer "
                "(the class itself), e.g. torch.optim.AdamW"
            )
        if cls in WHOLE_MODEL:
            raise ValueError(
                f"[{WHO}] {cls.__name__} cannot be offloaded: {WHOLE_MODEL[cls]}; "
                "use torch.optim.AdamW"
            )
        self.cls = cls
        self.capturable = capturable
        self.factored = factored
        self.name = f"{cls.__module__}.{cls.__qualname__}"
        self.options = dict(options)
        self.is_native = NATIVE.get(cls) in torch.ops.outboard.rules()
        self._check_names(own_options)
        self.defaults = self._dummy().defaults
        self.check_flags(self.defaults)

    def rule_of(self, group: Mapping[str, Any]) -> str:
        """The native rule of a group, or "" for the generic path."""
        if not self.is_native:
            return ""
        rule = NATIVE[self.cls]
        if rule in ("Adam", "AdamW") and "decoupled_weight_decay" in group:
            return "AdamW" if group["decoupled_weight_decay"] else "Adam"
        return rule

    def rule_for(self, group: Mapping[str, Any], parameter: torch.Tensor) -> str:
        """The native rule of one parameter of a group, or "". Means of rows and columns need both,
        as neighbours in memory."""
        is_factored = self.factored and torch.ops.outboard.is_matrix(parameter)
        return FACTORED if is_factored else self.rule_of(group)

    def check_flags(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError for options that would be ignored. foreach and fused choose among
        torch's implementations of one formula, so they are accepted and mean nothing here."""
        if self.factored:
            self._check_factored(group)
        for flag in ("capturable", "differentiable"):
            if flag == "capturable" and self.capturable:
                if not group.get(flag, True):
                    raise ValueError(
                        f"[{WHO}] a group has capturable=False in an optimizer with "
                        "capturable=True; give it to neither or to the whole optimizer"
                    )
            elif group.get(flag):
                raise ValueError(
                    f"[{WHO}] {self.cls.__name__} with {flag}=True cannot be honoured: the update "
                    f"runs outside of torch's graphs; leave {flag} False (capturable=True is an "
                    "option of LowBitOptimizer as a whole)"
                )

    def _check_factored(self, group: Mapping[str, Any]) -> None:
        rule = self.rule_of(group)
        if rule != "AdamW":
            raise ValueError(
                f"[{WHO}] factored_second_moment=True is for AdamW, and {self.name} "
                f"{f'runs the rule {rule}' if rule else 'has no native rule'}; leave it False, or "
                "use torch.optim.AdamW"
            )
        if group.get("amsgrad"):
            raise ValueError(
                f"[{WHO}] amsgrad=True keeps a maximum for each element and cannot go with "
                "factored_second_moment=True; switch one of them off"
            )

    def check_values(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError if the base class refuses the group's values."""
        known = {key: group[key] for key in self.defaults if key in group}
        self._dummy(known)
        self.check_flags(group)

    def over(self, parameters: list[torch.Tensor], group: Mapping[str, Any]):
        """A base optimizer over `parameters` with the values of `group`."""
        values = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        return self.cls([{**values, "params": parameters}], **self.options)

    def _dummy(self, group: Mapping[str, Any] | None = None):
        parameter = torch.nn.Parameter(torch.zeros(1, 1, dtype=torch.float32, device="cpu"))
        try:
            accepted = inspect.signature(self.cls).parameters
            values = {k: v for k, v in (group or {}).items() if k in accepted}
            return self.cls([parameter], **{**self.options, **values})
        except (ValueError, AssertionError, RuntimeError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"[{WHO}] {self.name} refuses {group or self.options}: {error}; "
                "give values that it accepts"
            ) from error

    def _check_names(self, own_options: list[str]) -> None:
        accepted = inspect.signature(self.cls).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
            return
        theirs = list(accepted)[1:]
        for name, value in self.options.items():
            if name not in theirs:
                close = difflib.get_close_matches(name, own_options + theirs, 1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise TypeError(
                    f"[{WHO}] unknown option {name}={value!r}; {hint}{WHO} takes "
                    f"{', '.join(own_options)}, and {self.cls.__name__} takes {', '.join(theirs)}"
                )
