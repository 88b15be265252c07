"""Attached models when things fail, are copied, saved or thrown away."""

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from attach_support import TOKENS, VECTORS, D, Failing, Flow, Gpt, Rig, Tree, prepared
from outboard._attach import Attachment
from outboard._hooks import Guard
from support import assert_same
from torch import nn
from torch.utils.checkpoint import checkpoint

# ---- Exceptions, threads, backward ---------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", ["watched", "in flight", "quiet"])
def test_exceptions_leave_everything_consistent(error, when):
    rig = Rig(Failing())
    if when != "watched":
        rig.compare(VECTORS)
    if when == "in flight":
        rig.launch()
    rig.model.error = error
    with pytest.raises(error):
        rig.model(VECTORS)
    rig.model.error = None
    announced = rig.announced
    rig.compare(VECTORS)
    assert rig.announced == announced + 1
    for _ in range(3):
        rig.check(VECTORS)
    rig.launch()
    rig.model.parts[0](VECTORS)  # whatever was left behind, a step later everything is new
    assert len(rig.engine.waits[0]) == len(rig.names)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_caught_in_forward(error):
    class Catching(Failing):
        def __init__(self):
            super().__init__()
            self.inner = Failing()

        def forward(self, x):
            try:
                return self.inner(x)
            except error:
                return self.parts[3](x)

    rig = prepared(Catching(), VECTORS)
    rig.compare(VECTORS)
    rig.model.inner.error = rig.twin.inner.error = error
    rig.compare(VECTORS)
    announced = rig.announced
    rig.model.parts[1](VECTORS)
    assert rig.announced == announced + 1
    for _ in range(3):
        rig.check(VECTORS)


def test_failed_forward_is_over():
    rig = prepared(Failing(), VECTORS)
    rig.compare(VECTORS)
    rig.model.error = ValueError
    with pytest.raises(ValueError, match="in forward"):
        rig.model(VECTORS)
    announced = rig.announced
    rig.model.parts[2](VECTORS)
    assert rig.announced == announced + 1


def test_interrupted_then_another_module_called():
    rig = prepared(Failing(), VECTORS)
    rig.model.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        rig.model(VECTORS)
    rig.launch()
    announced = rig.announced
    assert_same(rig.model.parts[2](VECTORS), rig.twin.parts[2](VECTORS))
    assert rig.announced == announced + 1
    assert len(rig.engine.waits[0]) == len(rig.names)


def test_failing_hook_before_ours():
    rig = prepared(Gpt(), TOKENS)

    def fail(*_):
        raise ValueError("hook")

    handle = rig.model.blocks[1].register_forward_pre_hook(fail, prepend=True)
    rig.launch()
    with pytest.raises(ValueError, match="hook"):
        rig.model(TOKENS)
    handle.remove()
    rig.check(TOKENS)


def test_failing_wait_is_raised_and_leaves_nothing_behind(monkeypatch):
    rig = prepared(Gpt(), TOKENS)
    rig.launch()
    with monkeypatch.context() as patch:
        patch.setattr(rig.engine, "wait_weights", lambda indices: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rig.model(TOKENS)
    rig.compare(TOKENS)
    rig.check(TOKENS)


def test_threads_have_their_own_forwards():
    rig = prepared(Gpt("before"), TOKENS)
    expected = rig.twin(TOKENS)
    for _ in range(5):
        rig.launch()
        start = threading.Barrier(3)
        results = [None] * 3

        def forward(number, results=results, start=start):
            start.wait()
            results[number] = rig.model(TOKENS)

        threads = [threading.Thread(target=forward, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            assert_same(result, expected)


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_recomputation_waits_for_nothing_in_flight_elsewhere(kind):
    """Updates that start within backward: hooks in it must not wait for them."""
    rig = prepared(Gpt("after", kind), TOKENS)
    loss = rig.model(TOKENS).sum()
    last = [i for n, i in rig.names.items() if n.startswith("norm")]
    announced = rig.announced
    handle = rig.model.norm.weight.register_post_accumulate_grad_hook(
        lambda _: rig.engine.launch(last)
    )
    loss.backward()
    handle.remove()
    assert rig.engine.waits == []
    assert rig.announced == announced
    rig.model.zero_grad()
    rig.twin.zero_grad()
    rig.compare(TOKENS)  # without step_taken(): the engine says that it updates


@pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "unguarded"])
def test_recomputation_after_a_step_waits(is_guarded, monkeypatch):
    class Steps(nn.Sequential):
        def forward(self, x):
            for part in self:
                x = checkpoint(part, x, use_reentrant=False)
            return x

    if not is_guarded:
        monkeypatch.delattr(Guard, "__getitem__")
    rig = prepared(Steps(nn.Linear(D, D), nn.LayerNorm(D), Failing()), VECTORS)
    loss = rig.model(VECTORS).sum()
    expected = rig.twin(VECTORS).sum()
    rig.model.zero_grad()
    rig.launch()
    loss.backward()
    rig.twin.zero_grad()
    expected.backward()
    for p, q in zip(rig.model.parameters(), rig.twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert_same(p.grad, q.grad)


def test_forward_that_calls_itself_is_one():
    rig = prepared(Tree(), VECTORS)
    announced = rig.announced
    rig.compare(VECTORS)
    assert rig.announced == announced + 1


# ---- What else reads or writes weights -----------------------------------------------------------


def test_announcements():
    rig = Rig(Gpt())
    rig.model(TOKENS)
    assert rig.announced == 1
    with torch.no_grad():
        rig.model(TOKENS)
    assert rig.announced == 1
    rig.model.eval()
    rig.model(TOKENS)
    assert rig.announced == 2
    rig.model.requires_grad_(False)
    rig.model(TOKENS)
    assert rig.announced == 2


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m.blocks[1], lambda m: m.blocks[1].norm])
def test_state_dict_is_current(part):
    rig = prepared(Gpt(), TOKENS)
    rig.launch()
    assert_same(dict(part(rig.model).state_dict()), dict(part(rig.twin).state_dict()))


def test_loaded_weights_are_not_overwritten():
    rig = prepared(Gpt(), TOKENS)
    values = {k: v + 1 for k, v in rig.twin.state_dict().items()}
    rig.launch()
    rig.model.load_state_dict(values)
    assert not rig.engine.held
    rig.twin.load_state_dict(values)
    rig.check(TOKENS)


def test_reading_a_parameter_by_name_waits_and_iterating_does_not():
    rig = prepared(Gpt(), TOKENS)
    rig.compare(TOKENS)  # with nothing in flight
    rig.launch()
    rig.model.zero_grad()
    assert sum(p.numel() for p in rig.model.parameters()) and rig.engine.waits == []
    assert_same(rig.model.blocks[0].first.weight.norm(), rig.twin.blocks[0].first.weight.norm())
    assert rig.engine.waits == [[rig.names["blocks.0.first.weight"]]]


def test_another_optimizer_synchronises_if_it_shares_parameters():
    rig = prepared(Gpt(), TOKENS)
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))])
    sharing = torch.optim.SGD([rig.model.norm.weight], lr=0.0)
    own = torch.optim.SGD([rig.model.norm.weight], lr=0.0)
    own._engine = rig.engine
    rig.launch()
    other.step()
    own.step()
    assert rig.engine.synchronized == 0
    sharing.step()
    assert rig.engine.synchronized == 1
    rig.attachment.detach()
    rig.engine.launch()
    sharing.step()
    assert rig.engine.synchronized == 2  # by detach()


# ---- Copies, lifetimes ---------------------------------------------------------------------------


def test_copies_and_pickles_have_no_hooks():
    rig = prepared(Gpt(), TOKENS)
    buffer = io.BytesIO()
    torch.save(rig.model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(rig.model),
        pickle.loads(pickle.dumps(rig.model)),
        torch.load(buffer, weights_only=False),
    ]
    rig.launch()
    for other in copies:
        assert_same(other(TOKENS), rig.twin(TOKENS))
        assert_same(dict(other.state_dict()), dict(rig.twin.state_dict()))
        assert type(other.norm._parameters) is dict
    assert rig.engine.waits == []
    assert b"outboard" not in pickle.dumps(rig.model)
    rig.compare(TOKENS)


def traces(model):
    """What attach() may have left in a model."""
    names = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks")
    names += ("_load_state_dict_pre_hooks", "_forward_hooks_always_called")
    found = [len(getattr(module, name)) for module in model.modules() for name in names]
    return sum(found) + sum(isinstance(m._parameters, Guard) for m in model.modules())


def test_detach_leaves_no_trace():
    gc.collect()
    of_module = torch.nn.modules.module
    before = len(of_module._global_module_registration_hooks)
    rig = prepared(Gpt(), TOKENS)
    assert traces(rig.model) > 50
    rig.launch()
    rig.attachment.detach()
    rig.attachment.detach()
    assert traces(rig.model) == 0
    assert len(of_module._global_module_registration_hooks) == before
    assert not rig.engine.held
    rig.compare(TOKENS)
    again = Attachment(rig.model, rig.registry, rig.engine, rig.announce)
    rig.attachment = again
    rig.check(TOKENS)


def test_hooks_go_with_the_optimizer():
    rig = prepared(Gpt(), TOKENS)
    engine = weakref.ref(rig.engine)
    model, twin = rig.model, rig.twin
    del rig  # no garbage collector is needed
    assert engine() is None
    assert traces(model) == 0
    assert_same(model(TOKENS), twin(TOKENS))


def test_attachment_does_not_keep_the_model():
    rig = prepared(Flow(), VECTORS)
    model = weakref.ref(rig.model)
    rig.model = None
    gc.collect()
    assert model() is None


def test_two_optimizers_on_one_model():
    model = Gpt()
    named = list(model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = Rig(model, named[::2])
        other = Rig(model, named[1::2])
    for _ in range(4):
        other.launch()
        one.check(TOKENS)
    one.attachment.detach()
    other.check(TOKENS)
    other.attachment.detach()
    assert traces(model) == 0


def test_attach_twice():
    rig = Rig(Gpt())
    with pytest.raises(ValueError, match=r"attached to this optimizer already; detach\(\)"):
        Attachment(rig.model, rig.registry, rig.engine, rig.announce)
    rig.check(TOKENS)


def test_attach_a_model_with_none_of_the_parameters():
    rig = Rig(Gpt())
    with pytest.raises(ValueError, match="Linear has none of the optimizer's 21 parameters"):
        Attachment(nn.Linear(2, 2), rig.registry, rig.engine, rig.announce)


def test_attach_a_model_that_lacks_parameters():
    model = Gpt()
    extra = nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="Gpt lacks 'extra'; every forward waits") as record:
        rig = Rig(model, [*model.named_parameters(), ("extra", extra)])
        rig.compare(TOKENS)
        rig.check(TOKENS)
    assert len(record) == 1
    rig.check(TOKENS)
    assert rig.engine.waits[0] == [rig.names["extra"]]
