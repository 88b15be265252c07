"""The part of the optimizers that holds, saves and loads state: torch's `state` attribute,
state dicts with their hooks, checkpoint files, copies and pickles.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from . import _state, checkpoint, hyper
from .hyper import WHO


class StateDicts(torch.optim.Optimizer):
    """Mixed into EngineOptimizer, whose attributes it uses. Not a class for users."""

    @property
    def state(self) -> defaultdict[torch.Tensor, Any]:
        """Per parameter, live views of what the engine holds; empty before a first step. State in
        formats with blocks is shown as fp32 copies in host memory, for all parameters at once.
        Waits for updates under way."""
        if self._state_is_stale or self._options.capturable:  # replays are not seen here
            self._state_is_stale = False
            self._holds_copies = self._shows_exact or any(
                "/" in self._engine.state_format(i) for i in range(len(self._registry.parameters))
            )
            self._engine.synchronize()
            for index, parameter in enumerate(self._registry.parameters):
                self._refresh(parameter, self._state_of(index))
        return self._state

    @state.setter
    def state(self, value: Mapping[torch.Tensor, Any]) -> None:
        """Empty: resets all state, as `optimizer.state = defaultdict(dict)` does in torch.
        Otherwise copies the entries in, checked as in load_state_dict."""
        if not self._is_built:
            return  # torch's constructor
        by_index = {self._registry.index(p): entry for p, entry in value.items() if entry}
        self._apply(self._checked(by_index, self.param_groups))

    def _mark_stale(self) -> None:
        """What `state` has shown is not current any more; copies are not kept."""
        self._state_is_stale = True
        if self._holds_copies:
            self._state.clear()
            self._holds_copies = False

    def state_dict(self, *, clone: bool = False, compressed: bool = False) -> dict[str, Any]:
        """Torch's layout, with masters, and the entry "outboard" (plain values).

        Tensors alias the live state, as torch's do; `clone=True` makes it a snapshot. State in
        formats with blocks is decoded to fp32 copies in host memory, so that it loads everywhere.
        `compressed=True` gives it exactly instead, as three plain tensors whose names say the
        format: "exp_avg.sym8.128.codes" (uint8), ".scales" (float32), ".layout" (sizes and
        strides). Loading that into the same format resumes with the same bits.
        """
        handle = self.register_state_dict_post_hook(_describe, prepend=True)
        self._shows_exact = compressed
        if compressed:
            self._mark_stale()
        try:
            result = super().state_dict()
        finally:
            handle.remove()
            self._shows_exact = False
            if self._holds_copies:
                self._mark_stale()
        return copy.deepcopy(result) if clone else result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads outboard's or torch's own state dict of the same class, of any state format.

        Everything is checked first: ValueError means that nothing was changed. Values are copied
        into the existing memory. Masters are used only if the dict comes from outboard; without
        them the weights stay as they are. Group dicts stay the same objects.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        ids = _state.check_groups(state_dict.get("param_groups"), self.param_groups)
        own = state_dict.get("outboard")
        if own is not None:
            _state.check_description(own, len(ids))
        saved = state_dict.get("state")
        _state.check_entries(saved, ids, [ids[i] for i in (own or {}).get("stepped", [])])
        order = [self._registry.index(p) for group in self.param_groups for p in group["params"]]
        by_index = {index: dict(saved.get(i) or {}) for i, index in zip(ids, order, strict=True)}
        if own is None:
            # The dict went through torch, which may have trained on: its masters are stale.
            for entry in by_index.values():
                entry.pop("master", None)
        groups = self._merged_groups(state_dict["param_groups"])
        self._apply(self._checked(by_index, groups))
        for group, loaded in zip(self.param_groups, groups, strict=True):
            loaded = {
                k: v if k == "params" else hyper.put(group.get(k), v) for k, v in loaded.items()
            }
            group.clear()
            group.update(loaded)
        self._warn_about_seed(own)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def save(self, path: str | os.PathLike, *, compressed: bool = True) -> None:
        """outboard.save(self.state_dict(compressed=compressed), path): atomic. The default resumes
        with the same bits; with compressed=False torch's own classes can load the file."""
        checkpoint.save(self.state_dict(compressed=compressed), path)

    def load(self, path: str | os.PathLike) -> None:
        """self.load_state_dict(outboard.load(path)): verified."""
        self.load_state_dict(checkpoint.load(path))

    def _state_of(self, index: int) -> dict[str, Any]:
        if self._registry.rules[index]:
            state = dict(self._engine.state(index, self._shows_exact))
            # Torch's order.
            return {"step": state.pop("step"), **state} if state else {}
        return self._generic.state(index)

    def _refresh(self, parameter: torch.Tensor, fresh: dict[str, Any]) -> None:
        if not fresh:
            self._state.pop(parameter, None)
            return
        entry = self._state[parameter]
        for key in [key for key in entry if key not in fresh]:
            del entry[key]
        entry.update(fresh)

    def _merged_groups(self, saved: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the groups will be. Options the saved ones lack, formats, and the kind of each
        number are the current ones."""
        result = []
        for number, (group, theirs) in enumerate(zip(self.param_groups, saved, strict=True)):
            merged = {key: theirs.get(key, value) for key, value in group.items()}
            merged |= {key: value for key, value in theirs.items() if key not in merged}
            merged = {k: hyper.keep_kind(group.get(k), copy.copy(v)) for k, v in merged.items()}
            fixed = ("params", "state_format", "block_size", "master", "capturable")
            merged |= {key: group[key] for key in fixed if key in group}
            try:
                self._base.check_values(merged)
            except (TypeError, ValueError) as error:
                _state.fail(f"parameter group {number} of the loaded state dict: {error}")
            rule = self._base.rule_of(merged)
            if (
                group["params"]
                and rule != self._registry.group_rules[self._registry.index(group["params"][0])]
            ):
                _state.fail(
                    f"parameter group {number} was saved by {rule}",
                    f"construct the optimizer with torch.optim.{rule}",
                )
            result.append(merged)
        return result

    def _checked(
        self, by_index: dict[int, Mapping[str, Any]], groups: list[dict[str, Any]]
    ) -> dict[int, dict[str, Any]]:
        """The entries as engine or generic path take them. Raises ValueError, changes nothing."""
        group_of = {self._registry.index(p): g for g in groups for p in g["params"]}
        result = {}
        for index, entry in by_index.items():
            parameter, name = self._registry.parameters[index], self._registry.names[index]
            group, rule = group_of[index], self._registry.rules[index]
            if rule:
                result[index] = _state.native_entry(entry, parameter, name, rule, group)
            else:
                expected = self._generic.expected(parameter, group) if entry else None
                result[index] = _state.generic_entry(entry, parameter, name, expected)
        return result

    def _apply(self, entries: dict[int, dict[str, Any]]) -> None:
        native = {i: entry for i, entry in entries.items() if entry and self._registry.rules[i]}
        # First, because the engine checks once more before it copies.
        self._engine.load_states(list(native), list(native.values()))
        for index in range(len(self._registry.parameters)):
            if not self._registry.rules[index]:
                self._generic.load(index, entries.get(index, {}))
            elif index not in native:
                self._engine.reset_state(index)
        self._mark_stale()

    def _warn_about_seed(self, own: Mapping[str, Any] | None) -> None:
        if own is not None and own.get("seed") != self._options.seed:
            warnings.warn(
                f"[{WHO}] the state was saved with seed={own.get('seed')}, this optimizer has "
                f"seed={self._options.seed}; stochastic rounding goes on differently. Construct "
                "with the saved seed to resume bit by bit",
                stacklevel=3,
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are made anew from groups, options and state; as in torch, without
        hooks. A deep copy of a model and its optimizer together stays connected."""
        formats = [
            self._registry.formats[self._registry.index(p)]
            for group in self.param_groups
            for p in group["params"]
        ]
        state_dict = self.state_dict(compressed=True)
        return _rebuild, (type(self), self.param_groups, self._arguments, formats, state_dict)

    def __copy__(self) -> Any:
        raise TypeError(
            f"[{WHO}] a shallow copy would update the same parameters twice; use "
            "copy.deepcopy((model, optimizer)), or state_dict() and load_state_dict()"
        )


def _rebuild(
    cls: type, groups: Any, arguments: dict[str, Any], formats: list[Any], state_dict: Any
) -> Any:
    optimizer = cls([dict(group) for group in groups], **arguments)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, wish in zip(parameters, formats, strict=True):
        if optimizer._registry.formats[optimizer._registry.index(parameter)] != wish:
            optimizer.convert_state(*wish, parameters=parameter)
    optimizer.load_state_dict(state_dict)
    return optimizer


def _describe(optimizer: StateDicts, state_dict: dict[str, Any]) -> None:
    order = [optimizer._registry.index(p) for g in optimizer.param_groups for p in g["params"]]
    rules, engine = optimizer._registry.rules, optimizer._engine
    state_dict["outboard"] = _state.describe(
        seed=optimizer._options.seed,
        class_name=optimizer._base.name,
        state_format=optimizer._options.state_format,
        masters=[engine.master_format(i) if rules[i] else "fp32" for i in order],
        stepped=sorted(i for i, entry in state_dict["state"].items() if entry),
    )
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    for i, (index, group) in enumerate(zip(order, groups, strict=True)):
        if i not in state_dict["state"]:
            parameter = optimizer._registry.parameters[index]
            entry = _state.fresh_entry(rules[index], parameter, group)
            state_dict["state"].update({i: entry} if entry else {})
