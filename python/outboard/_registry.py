"""Which parameters the engine has, under which index, name and rule; and what may become of them.
Knows groups and the engine's indices; steps nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ._formats import FormatWish
from .hyper import WHO


class Registry:
    """Parameters in the order of the engine's indices, which is the order of registration."""

    def __init__(self, rule_of: Callable[[dict[str, Any]], str]):
        self.parameters: list[torch.Tensor] = []
        self.names: list[str] = []
        self.rules: list[str] = []  # "" for the generic path
        self.group_rules: list[str] = []  # of the whole group; that of a parameter may be special
        self.formats: list[FormatWish] = []  # as wished for; the engine knows what came of it
        self._rule_of = rule_of
        self._indices: dict[int, int] = {}  # by id(parameter); `parameters` keeps them alive

    def index(self, parameter: torch.Tensor) -> int:
        """The engine's index. Raises KeyError for a parameter that it does not have."""
        return self._indices[id(parameter)]

    def add(
        self,
        first: int,
        parameters: list[torch.Tensor],
        names: list[str],
        group_rule: str,
        rules: list[str],
        formats: list[FormatWish],
    ) -> None:
        """Notes what the engine has taken as first, first + 1, …"""
        for index, parameter in enumerate(parameters, first):
            self._indices[id(parameter)] = index
        self.parameters += parameters
        self.names += names
        self.group_rules += [group_rule] * len(parameters)
        self.rules += rules
        self.formats += formats

    def check_duplicates(self, group: Any) -> None:
        """Raises ValueError if a parameter of a new group is in it twice, or in an older one.
        Makes a list of group["params"], as torch does."""
        if not isinstance(group, dict) or isinstance(group.get("params"), (torch.Tensor, set)):
            return  # torch's own message or habit
        group["params"] = list(group["params"])
        seen: set[int] = set()
        for item in group["params"]:
            name, tensor = item if isinstance(item, tuple) else (None, item)
            if id(tensor) in seen or id(tensor) in self._indices:
                if id(tensor) in self._indices:
                    name = self.names[self._indices[id(tensor)]]
                raise ValueError(
                    f"[{WHO}] parameter {name or tuple(tensor.shape)} is given twice; give it once "
                    "(parameters() and named_parameters() leave out repetitions)"
                )
            seen.add(id(tensor))

    def group_numbers(self, groups: list[dict[str, Any]]) -> list[int]:
        """The group of each parameter, by index. Raises ValueError if a parameter was put into a
        group, taken out of all, or needs another rule than at registration."""
        numbers = [-1] * len(self.parameters)
        for number, group in enumerate(groups):
            rule = self._rule_of(group)
            for parameter in group["params"]:
                index = self._indices.get(id(parameter))
                if index is None or self.group_rules[index] != rule:
                    what = "was put in" if index is None else f"needs the rule '{rule}' now"
                    raise ValueError(
                        f"[{WHO}] a parameter of {tuple(parameter.shape)} in group {number} "
                        f"{what}; use add_param_group(), or construct the optimizer anew"
                    )
                numbers[index] = number
        if -1 in numbers:
            raise ValueError(
                f"[{WHO}] parameter '{self.names[numbers.index(-1)]}' is in no group any more; "
                "construct the optimizer anew to leave parameters out"
            )
        return numbers
