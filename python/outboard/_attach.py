"""Makes a model's forward wait for the weights that it is about to read: optimizer.attach(model).

Hooks, and what they need to know of a forward under way. Nothing here computes on weights, copies
them or decides when they are updated. Reads are found by _watch.py.

Three nets, each wider than the one before: a module's pre-forward waits for what the module and
known readers under it use; a forward that is not known waits for everything at its start, or where
it leaves what is known; and `module.name` of a parameter in flight waits by itself.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.eval_frame import OptimizedModule
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ._hooks import (
    After,
    Before,
    Gate,
    OnCompilation,
    OnStateDict,
    Pass,
    Thread,
    guard,
    is_called_by_dynamo,
    is_in_backward,
    release,
)
from ._registry import Registry
from ._watch import Knowledge, Place, Watch, reachable
from .hyper import WHO


class Attachment:
    """Hooks on a model whose weights arrive late. Not thread safe to make or detach; forwards may
    run on any thread.

    Not found are reads outside of forward that do not name a parameter as `module.name` (of
    copies, of averages), and reads in forward that neither go through a module nor were in any
    watched forward, although the modules called are those of one. synchronize() comes before them.

    `announce` is called at the start of every outermost forward that may lead to a backward, and
    wait_weights() by the thread that runs forward, with its current stream. `engine` must answer
    is_updating() with True until every copy has arrived.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        registry: Registry,
        engine: Any,
        announce: Callable[[], None],
    ):
        """Raises ValueError, with nothing changed, if the model has none of the optimizer's
        parameters or is attached already. Warns of parameters that it lacks."""
        if isinstance(model, OptimizedModule):
            model = model._orig_mod
        self._model = weakref.ref(model)
        self._registry = registry
        self._engine = engine
        is_method = inspect.ismethod(announce)  # of the owner, which would never go otherwise
        self._announce = weakref.WeakMethod(announce) if is_method else lambda: announce
        self._gate = Gate(self)
        self._places: weakref.WeakKeyDictionary[torch.nn.Module, Place] = (
            weakref.WeakKeyDictionary()
        )
        self._handles: list[Any] = []
        self._epoch = 0
        self._since_step: set[int] = set()  # waited for, by any thread
        self._structure: Any = None
        self._is_bypassed = False  # compiled code may read weights where no hook is called
        self._check(model)
        self._finalizer = weakref.finalize(self, release, self._gate, self._handles, self._places)
        self._finalizer.atexit = False
        self._hook_modules()
        self._hook_torch()

    def detach(self) -> None:
        """Synchronises and removes every hook. Does nothing the second time."""
        if self._finalizer.alive:
            self._engine.synchronize()
            self._finalizer()

    def step_taken(self) -> None:
        """To be called when weights of a new step may be on their way."""
        self._epoch += 1
        self._since_step = set()
        self._gate.alert = True
        self._on_compilation.ensure()
        if self._is_bypassed and self._engine.is_updating():
            self._engine.wait_weights(list(self._everything))

    # ---- Hooks ----------------------------------------------------------------------------------

    def _check(self, model: torch.nn.Module) -> None:
        held = {id(parameter) for parameter in model.parameters()}
        names = self._registry.names
        parameters = self._registry.parameters
        lacking = [n for n, p in zip(names, parameters, strict=True) if id(p) not in held]
        if len(lacking) == len(names):
            raise ValueError(
                f"[{WHO}] attach: {type(model).__name__} has none of the optimizer's "
                f"{len(names)} parameters; attach the model that it was constructed for"
            )
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                other = hook.gate.attachment() if isinstance(hook, Before) else None
                if other is not None and other._engine is self._engine:
                    raise ValueError(
                        f"[{WHO}] attach: {type(module).__name__} is attached to this optimizer "
                        "already; detach() first"
                    )
        if lacking:
            shown = ", ".join(f"'{name}'" for name in lacking[:5])
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            warnings.warn(
                f"[{WHO}] attach: {type(model).__name__} lacks {shown}{more}; every forward waits "
                "for these at its start. Attach a module that has all parameters",
                stacklevel=4,
            )

    def _hook_modules(self) -> None:
        """Also finds what was added since the last time; what was learned is forgotten then."""
        self._gate.is_stale = False
        model = self._model()
        modules = [] if model is None else list(model.modules())
        owned = [(id(module), *map(id, module._parameters.values())) for module in modules]
        count = len(self._registry.parameters)
        if (count, owned) == self._structure and all(m in self._hooked for m in modules):
            return
        self._structure = (count, owned)
        self._hooked = weakref.WeakSet(modules)
        self._indices = {id(p): index for index, p in enumerate(self._registry.parameters)}
        self._known = Knowledge(count)
        self._everything = range(count)
        for module in modules:
            inside = self._find(module.parameters())
            if isinstance(module, torch.jit.ScriptModule) and inside:
                self._note_bypass("a scripted module", "use torch.compile")
            elif not isinstance(module, OptimizedModule) and (inside or module is model):
                self._hook_module(module, frozenset(inside))

    def _find(self, tensors: Iterable[Any]) -> tuple[int, ...]:
        found = (self._indices.get(id(tensor)) for tensor in tensors)
        return tuple(dict.fromkeys(index for index in found if index is not None))

    def _hook_module(self, module: torch.nn.Module, inside: frozenset[int]) -> None:
        own = self._find(module._parameters.values())
        if own:
            guard(module, self._gate)
        if module in self._places:
            self._places[module].set(own, inside)
            return
        place = self._places[module] = Place(own, inside)
        on_state = OnStateDict(self._gate, place)
        self._handles += [
            module.register_forward_pre_hook(Before(self._gate, place), prepend=True),
            module.register_forward_hook(After(self._gate, place), always_call=True),
            module.register_state_dict_pre_hook(on_state),
            module.register_load_state_dict_pre_hook(on_state),
        ]

    def _hook_torch(self) -> None:
        of_module = torch.nn.modules.module
        gate = self._gate
        self._on_compilation = OnCompilation(gate)
        self._handles += [
            of_module.register_module_module_registration_hook(gate.on_registration),
            of_module.register_module_parameter_registration_hook(gate.on_registration),
            register_optimizer_step_pre_hook(gate.on_step),
            self._on_compilation,
        ]

    def before_step(self, optimizer: Any) -> None:
        """Another optimizer's step reads and writes weights that it shares with this one."""
        if getattr(optimizer, "_engine", None) is self._engine or not self._engine.is_updating():
            return
        if any(self._find(group["params"]) for group in optimizer.param_groups):
            self.synchronize()

    def before_compilation(self) -> None:
        """Code about to be compiled and run may read weights where no hook is called."""
        if not is_in_backward() and self._engine.is_updating():
            self._engine.wait_weights(list(self._everything))

    def synchronize(self) -> None:
        """Before a module's state is read or written as a whole."""
        if self._engine.is_updating():
            self._engine.synchronize()

    # ---- Forward, called by the hooks -----------------------------------------------------------

    @torch._dynamo.disable
    def enter(self, place: Place, module: torch.nn.Module, is_compiled: bool, frame: Any) -> None:
        """Before a module's forward; `frame` is the caller of the hook."""
        thread = self._gate.thread
        thread.drop_if_over(place, self._epoch)
        thread.stack.append(place)  # first, so that leave() finds it whatever fails here
        own_forward = vars(module).get("forward")
        is_compiled |= hasattr(own_forward, "_torchdynamo_orig_callable")
        how = (is_compiled, own_forward)
        if thread.current is None:
            thread.current = Pass(self._epoch, frame)
            if is_compiled and own_forward is None and not is_called_by_dynamo(frame):
                self._note_bypass(
                    f"a compiled function that calls {type(module).__name__}",
                    "compile the module instead, or its blocks",
                )
            self._enter_outermost(thread, place, module, how)
        elif not thread.covered:
            self._enter_nested(thread, place, how)
        if is_compiled and not thread.covered:
            self._cover(thread, place, module)

    def _enter_outermost(
        self, thread: Thread, place: Place, module: torch.nn.Module, how: tuple[bool, Any]
    ) -> None:
        current = thread.current
        current.is_updating = self._engine.is_updating()
        if is_in_backward():  # which runs a part of a forward again
            current.waited = self._since_step
            self._gate.alert |= current.is_updating
            self._wait(current, place.waits)
            return
        if self._gate.is_stale or len(self._registry.parameters) != len(self._everything):
            self._hook_modules()
        trains = module.training or any(p.requires_grad for p in self._registry.parameters)
        if torch.is_grad_enabled() and trains and (announce := self._announce()):
            announce()
        if not current.is_updating and len(self._since_step) < len(self._everything):
            self._since_step = set(self._everything)
        current.node = self._known.start(place, how)
        self._gate.alert = current.is_updating or current.node is None
        if current.node is not None:
            self._wait(current, (*self._known.unseen, *place.waits))
            return
        self._wait(current, self._everything)
        current.watch = Watch(self._registry.parameters, thread.stack)
        current.watch.sequence.append((place, how))
        current.watch.start()

    def _enter_nested(self, thread: Thread, place: Place, how: tuple[bool, Any]) -> None:
        current = thread.current
        if current.watch is not None:
            current.watch.sequence.append((place, how))
        elif current.node is not None and current.is_updating:
            current.node = self._known.follow(current.node, thread.stack[0], place, how)
            if current.node is None:
                self._wait(current, self._everything)
        self._wait(current, place.waits)

    def _cover(self, thread: Thread, place: Place, module: torch.nn.Module) -> None:
        """Compiled code reads weights without calling hooks: all that it can reach comes first."""
        current = thread.current
        if place.region is None:
            place.region = tuple(sorted({*place.waits, *self._find(reachable(module))}))
        self._wait(current, place.region)
        if current.watch is not None:
            current.watch.stop()
            current.watch.seen.update(place.region)
        thread.covered = True
        thread.cover_depth = len(thread.stack)

    def _note_bypass(self, who: str, advice: str) -> None:
        if self._is_bypassed:
            return
        self._is_bypassed = True
        warnings.warn(
            f"[{WHO}] attach: {who} may read weights where no hook is called; step() waits for "
            f"them from now on. To let updates overlap with forward, {advice}",
            stacklevel=2,
        )

    def _wait(self, current: Pass, indices: Iterable[int]) -> None:
        if not current.is_updating:
            return
        missing = [index for index in indices if index not in current.waited]
        if missing:
            self._engine.wait_weights(missing)
            current.waited.update(missing)
            self._since_step.update(missing)

    @torch._dynamo.disable
    def touch(self, parameter: Any) -> None:
        """`module.name` is asked for while weights may be in flight."""
        index = self._indices.get(id(parameter))
        current = self._gate.thread.current
        if index is None or (current is not None and index in current.waited):
            return
        if is_in_backward() and index in self._since_step:
            return
        if self._engine.is_updating():
            self._engine.wait_weights([index])

    @torch._dynamo.disable
    def leave(self, place: Place) -> None:
        """After a module's forward, or when that failed."""
        thread = self._gate.thread
        stack = thread.stack
        if place not in stack:  # a hook before ours failed
            return
        while stack.pop() is not place:
            pass
        watch = thread.current.watch
        if thread.covered and len(stack) < thread.cover_depth:
            thread.covered = False
            if watch is not None and stack:
                watch.start()
        if not stack:
            thread.reset()
            if watch is not None:
                self._known.learn(watch)
                self._engine.set_use_order(self._known.use_order(watch))
