"""The hooks of an attached model: what torch calls before and after each module. They note where
forward is, and turn to the Attachment in _attach.py when there is more to do. They hold no
reference that keeps the optimizer alive, and vanish from copies of the model.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._dynamo.callback import CallbackTrigger, callback_handler
from torch._dynamo.eval_frame import skip_code
from torch.compiler import is_dynamo_compiling

from ._watch import Node, Place, Watch

if TYPE_CHECKING:
    from ._attach import Attachment

# A call of a copied or unpickled hook: takes anything, does nothing, and needs no outboard.
_NO_HOOK = contextlib.nullcontext().__exit__


class Pass:
    """An outermost forward under way on one thread."""

    def __init__(self, epoch: int, frame: Any):
        self.epoch = epoch
        self.frame = frame  # of the outermost module's call
        self.is_updating = True
        self.waited: set[int] = set()
        self.node: Node | None = None  # where in the known forwards; None: nowhere
        self.watch: Watch | None = None


class Thread(threading.local):
    """What one thread is running. A stack that outlived its forward is recognised later: hooks
    after forward do not run for exceptions like KeyboardInterrupt."""

    def __init__(self) -> None:
        self.stack: list[Place] = []
        self.current: Pass | None = None
        self.covered = False  # within compiled code whose weights have all been waited for
        self.cover_depth = 0

    def drop_if_over(self, place: Place, epoch: int) -> None:
        """Forgets a forward that a step or a new call of its outermost module shows to be over."""
        if self.current is None:
            return
        is_over = self.current.epoch != epoch
        if self.stack[0] is place:  # again: it calls itself, or was left by an interrupt
            frame = sys._getframe()
            while frame is not None and frame is not self.current.frame:
                frame = frame.f_back
            is_over |= frame is None
        if is_over:
            self.reset()

    def reset(self) -> None:
        """No forward is under way."""
        if self.current and self.current.watch:
            self.current.watch.stop()
        self.stack = []
        self.current = None
        self.covered = False


class Gate:
    """All that hooks hold: they neither keep the optimizer alive nor need it."""

    def __init__(self, attachment: Attachment):
        self.attachment = weakref.ref(attachment)
        self.thread = Thread()
        self.alert = True  # hooks have more to do than to note where forward is
        self.is_stale = False  # modules or parameters were registered somewhere

    def on_registration(self, *_: Any) -> None:
        """A module or parameter has become part of some module."""
        self.is_stale = True

    def on_step(self, optimizer: Any, *_: Any) -> None:
        """Some optimizer is about to step."""
        attachment = self.attachment()
        if attachment is not None:
            attachment.before_step(optimizer)

    def on_compilation(self, arguments: Any) -> None:
        """Something is about to be compiled."""
        attachment = self.attachment()
        if attachment is not None and arguments.callback_trigger is CallbackTrigger.DYNAMO:
            attachment.before_compilation()


class _Hook:
    """A hook that vanishes from copies and pickles of its module."""

    def __init__(self, gate: Gate, place: Place):
        self.gate = gate
        self.place = place

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")

    def __deepcopy__(self, memo: Any) -> Any:
        return _NO_HOOK


class Before(_Hook):
    """Before a module's forward. While dynamo traces, nothing if an enclosing hook has waited for
    all that the compiled code reads (dynamo guards on that); a graph break otherwise, after which
    this runs as always."""

    def __call__(self, module: torch.nn.Module, args: Any) -> None:
        if is_dynamo_compiling():
            if not self.gate.thread.covered:
                torch._dynamo.graph_break("outboard waits for the weights of this module")
            return
        gate = self.gate
        stack = gate.thread.stack
        is_compiled = get_eval_frame_callback() is not None
        is_special = gate.alert or is_compiled or "forward" in module.__dict__
        if stack and not (is_special or stack[0] is self.place):
            stack.append(self.place)
            return
        attachment = gate.attachment()
        if attachment is not None:
            attachment.enter(self.place, module, is_compiled, sys._getframe(1))


class After(_Hook):
    """After a module's forward, whatever came of it."""

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if is_dynamo_compiling():
            return
        thread = self.gate.thread
        stack = thread.stack
        if len(stack) > 1 and stack[-1] is self.place and not thread.covered:
            stack.pop()
            return
        attachment = self.gate.attachment()
        if attachment is not None:
            attachment.leave(self.place)


class OnStateDict(_Hook):
    """Before a module's state is read or written as a whole."""

    def __call__(self, *_: Any) -> None:
        attachment = self.gate.attachment()
        if attachment is not None:
            attachment.synchronize()


class OnCompilation:
    """Before dynamo compiles anything, until remove()."""

    def __init__(self, gate: Gate):
        self._callback = gate.on_compilation
        self.ensure()

    def ensure(self) -> None:
        """torch.compiler.reset() forgets callbacks."""
        if self._callback not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self._callback)

    def remove(self) -> None:
        with contextlib.suppress(ValueError):
            callback_handler.remove_start_callback(self._callback)


class Guard(dict):
    """A module's _parameters: `module.name` waits if that parameter may be in flight. Iterating
    over parameters, as zero_grad() does, waits for nothing."""

    gates: tuple[Gate, ...] = ()

    def __getitem__(self, name: str) -> Any:
        value = dict.__getitem__(self, name)
        for gate in self.gates:
            if gate.alert and not is_dynamo_compiling():
                attachment = gate.attachment()
                if attachment is not None:
                    attachment.touch(value)
        return value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (list(self.items()),)


# Dynamo may inline these where they do nothing, but must not compile them on their own: run by
# themselves they would do nothing as well.
for _function in (
    Before.__call__,
    After.__call__,
    OnStateDict.__call__,
    Guard.__getitem__,
    Thread.__init__,
):
    skip_code(_function.__code__)


def is_called_by_dynamo(frame: Any) -> bool:
    """Whether a module's call, of which this is a frame, is what was compiled."""
    while frame is not None and frame.f_code.co_filename == torch.nn.modules.module.__file__:
        frame = frame.f_back
    path = os.path.dirname(frame.f_code.co_filename) if frame is not None else ""
    return path == os.path.dirname(torch._dynamo.__file__)


def is_in_backward() -> bool:
    """Whether autograd runs the caller."""
    return torch._C._current_graph_task_id() != -1


def guard(module: torch.nn.Module, gate: Gate) -> None:
    """Makes a module's _parameters a Guard of this gate, among others."""
    guarded = module._parameters
    if not isinstance(guarded, Guard):
        guarded = vars(module)["_parameters"] = Guard(guarded)
    if gate not in guarded.gates:
        guarded.gates = (*guarded.gates, gate)


def release(gate: Gate, handles: list[Any], places: Iterable[torch.nn.Module]) -> None:
    """Removes what was put into torch and into the modules that still exist."""
    for handle in handles:
        handle.remove()
    handles.clear()
    gate.alert = False
    for module in list(places):
        guarded = module._parameters
        if isinstance(guarded, Guard):
            guarded.gates = tuple(other for other in guarded.gates if other is not gate)
            if not guarded.gates:
                vars(module)["_parameters"] = dict(guarded)
