"""What one watched forward teaches: who read which parameter where, and in which order modules ran.
Touches no hook and waits for nothing; _attach.py decides what follows from it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

# Forwards of one outermost module that may be learned. Later ones that leave what is known wait for
# everything where they leave it.
MAX_WATCHED = 32


class Place:
    """A module with hooks: the parameters that its pre-forward waits for, by index."""

    def __init__(self, own: tuple[int, ...], inside: frozenset[int]):
        """`own`: owned directly; `inside`: those of the whole subtree."""
        self.set(own, inside)

    def set(self, own: tuple[int, ...], inside: frozenset[int]) -> None:
        """As at construction; forgets what add() added."""
        self.inside = inside
        self.waits = own
        self.region: tuple[int, ...] | None = None  # all a compiled run can read; found when needed

    def add(self, indices: Iterable[int]) -> None:
        """Also waits for these from now on."""
        self.waits = tuple(dict.fromkeys((*self.waits, *indices)))
        self.region = None


class Node:
    """A module call in a known forward, and which calls may come next."""

    def __init__(self, how: tuple[bool, Any]):
        """`how`: whether compiled code runs it, and its instance's own forward, if any."""
        self.how = how
        self.next: dict[Place, Node] = {}

    def runs_as(self, how: tuple[bool, Any]) -> bool:
        """Whether the module is run in the same way as when it was watched."""
        return self.how[0] == how[0] and self.how[1] is how[1]


class Knowledge:
    """What all watched forwards taught."""

    def __init__(self, count: int):
        """`count` parameters."""
        self.unseen = set(range(count))  # by any watched forward, or read in odd places
        self._count = count
        self._doubtful: set[int] = set()
        self._first: dict[Place, Node] = {}
        self._watched: dict[Place, int] = {}
        self._left: set[Place] = set()  # whose last forward was not a known one

    def start(self, place: Place, how: tuple[bool, Any]) -> Node | None:
        """Where a forward that starts here begins; None if it has to be watched."""
        node = self._first.get(place)
        is_known = node is not None and node.runs_as(how)
        if is_known and (place not in self._left or self._watched[place] >= MAX_WATCHED):
            return node
        return None

    def follow(self, node: Node, first: Place, place: Place, how: tuple[bool, Any]) -> Node | None:
        """The next node; None if the forward leaves what is known, and is watched next time."""
        following = node.next.get(place)
        if following is not None and following.runs_as(how):
            return following
        self._left.add(first)
        return None

    def learn(self, watch: Watch) -> None:
        """From a forward that is over, or failed half way."""
        for place, indices in watch.late.items():
            place.add(indices)
        self._doubtful |= watch.doubtful
        self.unseen = (self.unseen - watch.seen) | self._doubtful
        first = watch.sequence[0][0]
        self._left.discard(first)
        self._watched[first] = self._watched.get(first, 0) + 1
        followers: dict[Place, Node] = self._first
        for place, how in watch.sequence:
            node = followers.get(place)
            if node is None or not node.runs_as(how):
                node = followers[place] = Node(how)
            followers = node.next

    def use_order(self, watch: Watch) -> list[int]:
        """Every parameter, in the order in which a forward like the watched one waits."""
        order = dict.fromkeys(sorted(self.unseen))
        for place, (is_compiled, _) in watch.sequence:
            order |= dict.fromkeys((place.region or place.waits) if is_compiled else place.waits)
        order |= dict.fromkeys(range(self._count))
        return list(order)


class Watch(TorchDispatchMode):
    """Sees every tensor that reaches an operator, under whatever name, view or alias.

    Views are no reads; what is done with them is. It sees no kernels that bypass torch's
    dispatcher: parameters read by these alone stay unseen, and so waited for at the root.
    """

    def __init__(self, parameters: list[torch.Tensor], stack: list[Place]):
        """`stack`: the modules under way, kept current by the caller."""
        super().__init__()
        self.sequence: list[tuple[Place, tuple[bool, Any]]] = []
        self.seen: set[int] = set()
        self.late: dict[Place, set[int]] = {}  # read where no module under way waits for them
        self.doubtful: set[int] = set()  # read by a module that does not contain their owner
        self._stack = stack
        self._ids = {id(parameter): index for index, parameter in enumerate(parameters)}
        self._storages: dict[int, list[int]] = {}
        for index, parameter in enumerate(parameters):
            if key := _storage(parameter):
                self._storages.setdefault(key, []).append(index)
        self._is_active = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions that a forward calls stay compiled while it is watched."""
        return True

    def start(self) -> None:
        """Watches the calling thread until stop()."""
        if not self._is_active:
            self._is_active = True
            self.__enter__()

    def stop(self) -> None:
        """A mode that somebody entered later and left behind stays above this one, which then
        stays too and does nothing."""
        if self._is_active:
            self._is_active = False
            if _get_current_dispatch_mode() is self:
                self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_active and self._stack and not getattr(func, "is_view", False):
            for tensor in _tensors((args, kwargs)):
                for index in self._indices(tensor):
                    self._read(index)
        return func(*args, **kwargs)

    def _indices(self, tensor: torch.Tensor) -> Iterable[int]:
        index = self._ids.get(id(tensor))
        return self._storages.get(_storage(tensor), ()) if index is None else (index,)

    def _read(self, index: int) -> None:
        self.seen.add(index)
        if any(index in place.waits for place in self._stack):
            return
        innermost = self._stack[-1]
        self.late.setdefault(innermost, set()).add(index)
        if index not in innermost.inside:
            self.doubtful.add(index)


def _storage(tensor: torch.Tensor) -> int:
    """Equal for all views of the same memory; 0 for tensors without any."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _tensors(item)


def reachable(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters of a module's subtree, and those of tensors and modules that it holds in
    attributes and containers without having registered them."""
    found: set[int] = set()
    pending: list[Any] = [module]
    while pending:
        item = pending.pop()
        if id(item) in found:
            continue
        found.add(id(item))
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending += item
        elif isinstance(item, torch.nn.Module):
            pending += [v for k, v in vars(item).items() if not k.endswith("_hooks")]
        elif isinstance(item, types.MethodType):
            pending += [item.__self__, item.__func__]
        elif isinstance(item, functools.partial):
            pending += [item.func, item.args, item.keywords]
        elif isinstance(item, types.FunctionType):
            pending += inspect.getclosurevars(item).nonlocals.values()
