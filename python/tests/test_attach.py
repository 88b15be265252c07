"""Which weights an attached model waits for, and when."""

import pytest
import torch
from attach_support import (
    TOKENS,
    VECTORS,
    ZOO,
    Attention,
    D,
    Flow,
    Gpt,
    Hidden,
    Lists,
    Lora,
    Reacher,
    Rig,
    prepared,
)
from outboard._hooks import Guard
from support import assert_same
from torch import nn


@pytest.fixture(params=ZOO, ids=lambda name: name.replace(" ", "-"))
def zoo(request):
    make, x = ZOO[request.param]
    return Rig(make()), x


# ---- Every read is waited for --------------------------------------------------------------------


def test_first_forward_waits_and_so_do_all_after_it(zoo):
    rig, x = zoo
    for _ in range(4):
        rig.check(x)


def test_hooks_suffice_where_forward_does_as_before(zoo, monkeypatch):
    monkeypatch.delattr(Guard, "__getitem__")
    rig, x = zoo
    for _ in range(3):
        rig.check(x)
    rig.compare(x)
    rig.check(x)


def test_forward_watched_before_any_step(zoo):
    rig, x = zoo
    rig.compare(x)
    for _ in range(3):
        rig.check(x)


def test_evaluation_between_steps(zoo):
    rig, x = zoo
    rig.compare(x)
    rig.model.eval(), rig.twin.eval()
    with torch.no_grad():
        rig.check(x, backward=False)
        rig.compare(x, backward=False)
    with torch.inference_mode():
        rig.check(x, backward=False)
    rig.model.train(), rig.twin.train()
    rig.check(x)


def test_nothing_is_waited_for_twice_or_without_need(zoo):
    rig, x = zoo
    rig.check(x)
    rig.compare(x)
    rig.launch()
    rig.model(x)
    waited = [index for call in rig.engine.waits for index in call]
    assert len(waited) == len(set(waited))
    rig.engine.synchronize()
    rig.engine.waits.clear()
    rig.compare(x)
    assert rig.engine.waits == []


# ---- And no earlier than needed ------------------------------------------------------------------


def test_each_block_waits_for_its_own():
    rig = prepared(Gpt(), TOKENS)
    rig.check(TOKENS)
    for block in range(3):
        for name in ("norm", "first", "second"):
            prefix = f"blocks.{block}.{name}"
            assert rig.waited_together(f"{prefix}.weight") == {f"{prefix}.weight", f"{prefix}.bias"}
    order = rig.engine.orders[-1]
    assert order == [index for call in rig.engine.waits for index in call]


@pytest.mark.parametrize("name", ["out_proj.weight", "in_proj_weight"])
def test_attention_waits_for_its_projection_when_it_starts(name):
    rig = prepared(Attention(), VECTORS[None])
    rig.check(VECTORS[None])
    together = rig.waited_together(f"inner.1.{name}")
    assert together and all(other.startswith("inner.1.") for other in together)


def test_weights_used_by_functions_are_waited_for_by_the_module_around():
    rig = prepared(nn.Sequential(nn.Linear(D, D), Lora(), Lists()), VECTORS)
    rig.check(VECTORS)
    assert all(n.startswith("1.") for n in rig.waited_together("1.high.weight"))
    assert all(n.startswith("2.") for n in rig.waited_together("2.named.scale"))
    assert rig.waited_together("0.weight") == {"0.weight", "0.bias"}


def test_weights_that_a_foreign_module_reads_are_waited_for_first():
    rig = prepared(Reacher(), VECTORS)
    rig.check(VECTORS)
    assert rig.engine.waits[0] == [rig.names["b.weight"]]


def test_unused_parameters_are_waited_for_first():
    model = Flow()
    rig = Rig(model)
    for _ in range(3):
        rig.check(VECTORS, order=(0, 1, 2))
    idle = [rig.names["parts.3.weight"], rig.names["parts.3.bias"]]
    assert rig.engine.waits[0] == idle
    assert rig.engine.orders[-1][:2] == idle


# ---- Forwards that change ------------------------------------------------------------------------


def test_changed_order_is_learned():
    rig = prepared(Flow(), VECTORS)
    for order in [(3, 2, 1, 0), (0, 2), (1,), (0, 1, 2, 3), (2, 2, 2), (3, 2, 1, 0)] * 2:
        rig.check(VECTORS, order=order)
    for order in [(3, 2, 1, 0), (0, 2), (0, 1, 2, 3)]:
        rig.check(VECTORS, order=order)
        waits = [index // 2 for index in rig.engine.waits[0]]
        assert set(waits) == {order[0]}, "a forward seen before waits for everything"


def test_use_of_a_weight_that_no_watched_forward_saw():
    rig = prepared(Flow(), VECTORS)
    for functional in [(2,), (0,), (0, 3), (), (0, 1, 2, 3)]:
        rig.check(VECTORS, functional=functional)


def test_forward_waits_for_everything_where_it_leaves_what_is_known():
    class Detour(Hidden):
        def forward(self, x, detour=False):
            x = self.a(x)
            return x @ self.plain[0] if detour else self.b(self.b(x))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(D, D), Detour()

        def forward(self, x, detour=False):
            return self.last(self.first(self.first(x) if detour else x), detour)

    model, twin = Outer(), Outer()
    twin.load_state_dict(model.state_dict())
    rig = Rig(model, twin=twin)
    rig.compare(VECTORS)
    rig.check(VECTORS)
    for _ in range(3):
        rig.check(VECTORS, detour=True)


def test_many_different_forwards():
    rig = prepared(Flow(), VECTORS)
    for number in range(100):
        rig.check(VECTORS, order=[(number >> k) & 3 for k in range(5)])


def test_module_and_parameters_added_later():
    rig = prepared(Flow(), VECTORS)
    for net in (rig.model, rig.twin):
        torch.manual_seed(5)
        net.parts.append(nn.Linear(D, D))
    rig.check(VECTORS, order=(0, 4, 1))  # not the optimizer's: never in flight
    rig.register([(f"new.{n}", p) for n, p in rig.model.parts[4].named_parameters()])
    for _ in range(3):
        rig.check(VECTORS, order=(4, 0, 1))
    assert rig.waited_together("new.weight") == {"new.weight", "new.bias"}


def test_module_replaced_by_one_with_the_same_parameter():
    rig = prepared(Flow(), VECTORS)
    for net in (rig.model, rig.twin):
        old = net.parts[1]
        net.parts[1] = nn.Linear(D, D)
        net.parts[1].weight, net.parts[1].bias = old.weight, old.bias
    for _ in range(3):
        rig.check(VECTORS)


def test_forward_of_a_module_replaced_by_a_function():
    rig = prepared(Flow(), VECTORS)
    for net in (rig.model, rig.twin):
        borrowed = net.parts[3].weight
        net.parts[1].forward = lambda x, borrowed=borrowed: x @ borrowed
    for _ in range(3):
        rig.check(VECTORS)


def test_unrelated_modules_forget_nothing():
    rig = prepared(Gpt(), TOKENS)
    nn.Linear(3, 3)
    rig.check(TOKENS)
    assert len(rig.engine.waits) > 5


def test_modules_called_directly():
    rig = prepared(Gpt(), TOKENS)
    for _ in range(3):
        rig.launch()
        x, y = rig.model.embedding(TOKENS), rig.twin.embedding(TOKENS)
        for a, b in zip(rig.model.blocks, rig.twin.blocks, strict=True):
            x, y = a(x), b(y)
        assert_same(x, y)
        assert_same(rig.model.head(x), rig.twin.head(y))
    rig.check(TOKENS)


def test_functional_call_with_own_and_other_parameters():
    rig = prepared(Gpt("before"), TOKENS)
    for _ in range(3):
        rig.launch()
        mine = dict(rig.model.named_parameters())
        theirs = dict(rig.twin.named_parameters())
        result = torch.func.functional_call(rig.model, mine, (TOKENS,))
        assert_same(result, torch.func.functional_call(rig.twin, theirs, (TOKENS,)))
    rig.launch()
    result = torch.func.functional_call(rig.model, theirs, (TOKENS,))
    assert_same(result, rig.twin(TOKENS))
    rig.compare(TOKENS)


def test_forward_inside_forward_of_another_model():
    class Student(nn.Module):
        def __init__(self, teacher):
            super().__init__()
            self.teacher = [teacher]

        def forward(self, x):
            with torch.no_grad():
                return self.teacher[0](x) + self.teacher[0].parts[3](x)

    rig = prepared(Flow(), VECTORS)
    for _ in range(3):
        rig.launch()
        assert_same(Student(rig.model)(VECTORS), Student(rig.twin)(VECTORS))
