"""The two ways to update the model: outboard, and torch's own optimizer beside the model.

Both are used through `Updater`, so that the training loop is the same for a run and for the run
that it is compared with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """What to optimize with, apart from where it runs."""

    optimizer_class: type[torch.optim.Optimizer]
    keywords: dict[str, Any]  # learning rate and the like
    weight_decay: float | None  # of matrices; None: the class's own default for everything
    clip: float  # largest global gradient norm, 0: off

    def groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Matrices decay, everything else does not."""
        parameters = list(parameters)
        if self.weight_decay is None:
            return [{"params": parameters}]
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        return [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]


class Updater(Protocol):
    """One optimizer as the training loop sees it."""

    def start_step(self, learning_rate: float) -> None: ...
    def trace(self, path: Path) -> Any: ...
    def micro_step(self, is_last: bool) -> contextlib.AbstractContextManager[None]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...
    def finish(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


# Standard momentum is what makes SGD competitive; the others are used with torch's defaults apart
# from the values that language models usually get.
_KEYWORDS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 1e-3, "betas": (0.9, 0.95)},
    "Adam": {"lr": 1e-3, "betas": (0.9, 0.95)},
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99)},
    "RMSprop": {"lr": 1e-3},
    "AdEMAMix": {"lr": 1e-3},
}
_SCALED = {"AdamW", "Adam", "Lion", "RMSprop", "AdEMAMix"}
_WEIGHT_DECAY = {"AdamW": 0.1, "AdEMAMix": 0.1, "Lion": 1.0}
_UNUSABLE = {
    "LBFGS": "it evaluates the loss several times per step",
    "SparseAdam": "it accepts sparse gradients only",
}


def make_recipe(name: str, learning_rate: float | None, clip: float, width: int) -> Recipe:
    """Finds the optimizer class called `name` (any case, or exactly as package.module.Class).

    Raises ValueError with what is wrong.

    Without a learning rate it is the class's usual one; where updates have a size of their own,
    not the gradient's, it is lower for wider models.
    """
    optimizer_class = _find_class(name)
    known = optimizer_class.__name__.removesuffix("8bit").removesuffix("4bit").removesuffix("Fp8")
    keywords = dict(_KEYWORDS.get(known, {}))
    default = inspect.signature(optimizer_class).parameters["lr"].default
    usual = keywords.get("lr", float(default)) * (512 / width if known in _SCALED else 1.0)
    keywords["lr"] = usual if learning_rate is None else learning_rate
    return Recipe(optimizer_class, keywords, _WEIGHT_DECAY.get(known), clip)


def _find_class(name: str) -> type[torch.optim.Optimizer]:
    import outboard

    if "." in name:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute, None)
        if found is None:
            raise ValueError(f"[train_gpt] --optimizer {name}: {module} has no {attribute}")
        return found
    classes = {
        key.lower(): value
        for module in (torch.optim, outboard)
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    del classes["optimizer"], classes["cpuoffloadoptimizer"]
    if name.lower() not in classes:
        known = ", ".join(sorted(value.__name__ for value in classes.values()))
        raise ValueError(f"[train_gpt] --optimizer {name} is unknown; choose one of {known}")
    found = classes[name.lower()]
    if found.__name__ in _UNUSABLE:
        why = _UNUSABLE[found.__name__]
        raise ValueError(
            f"[train_gpt] --optimizer {found.__name__} cannot train here: {why}; choose another one"
        )
    return found


class OutboardUpdater:
    """outboard's optimizer: master weights and state in host memory, or CPU weights in place."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        offload_gradients: bool,
        state_format: str,
        master: str,
        placement: str,
        schedule: str,
        seed: int,
    ) -> None:
        import outboard

        parameters = list(model.parameters())
        is_half = parameters[0].dtype == torch.float16
        self.optimizer = outboard.CPUOffloadOptimizer(
            recipe.groups(parameters),
            recipe.optimizer_class,
            offload_gradients=offload_gradients,
            state_format=state_format,
            master=master,
            placement=placement,
            schedule=schedule,
            max_grad_norm=recipe.clip or None,
            seed=seed,
            fused_amp=is_half,
            **recipe.keywords,
        )
        self.scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=is_half)
        if parameters[0].device.type == "cuda" and schedule != "at_step":
            self.optimizer.attach(model)  # each module waits for its own weights

    def start_step(self, learning_rate: float) -> None:
        # Before the forward: updates may begin in its backward, with what the groups say by then.
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def trace(self, path: Path) -> Any:
        """Records the next steps; the result's `steps` then say where their time went."""
        return self.optimizer.trace(path)

    def micro_step(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if is_last else self.optimizer.accumulate()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def finish(self) -> dict[str, float]:
        """Waits for the last weights and returns the optimizer's figures."""
        self.optimizer.synchronize()
        return dataclasses.asdict(self.optimizer.stats().memory)

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict(compressed=True)
        return {"optimizer": state, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


class TorchUpdater:
    """torch's own optimizer where the weights are, on fp32 masters of 16-bit weights."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.weights = list(model.parameters())
        self.has_masters = self.weights[0].dtype != torch.float32
        self.masters = self.weights
        if self.has_masters:
            self.masters = [nn.Parameter(w.detach().float()) for w in self.weights]
        self.clip = recipe.clip
        self.optimizer = recipe.optimizer_class(recipe.groups(self.masters), **recipe.keywords)
        is_half = self.weights[0].dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.weights[0].device.type, enabled=is_half)

    def start_step(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def trace(self, path: Path) -> None:
        """torch's optimizer records nothing."""

    def micro_step(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        del is_last  # gradients add up where they are
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        if self.has_masters:
            for weight, master in zip(self.weights, self.masters, strict=True):
                master.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None
        self.scaler.unscale_(self.optimizer)
        if self.clip:
            nn.utils.clip_grad_norm_(self.masters, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.has_masters:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)

    def finish(self) -> dict[str, float]:
        """What the optimizer holds, under outboard's names."""
        kept = [t for state in self.optimizer.state.values() for t in state.values()]
        place = "host" if self.weights[0].device.type == "cpu" else "device"
        return {
            f"{place}_masters": float(_bytes(self.masters) if self.has_masters else 0),
            f"{place}_state": float(_bytes(t for t in kept if torch.is_tensor(t))),
        }

    def state_dict(self) -> dict[str, Any]:
        masters = [m.detach() for m in self.masters] if self.has_masters else []
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "masters": masters,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=False):
                master.copy_(saved)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
