"""Attached models that torch.compile or torch.jit runs."""

import copy

import pytest
import torch
from attach_support import TOKENS, VECTORS, D, Failing, Gpt, Reacher, Rig
from support import assert_same
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_whole(net, **options):
    return torch.compile(net, **options)


def compile_in_place(net, **options):
    net.compile(**options)
    return net


def compile_blocks(net, **options):
    for block in net.blocks:
        block.compile(**options)
    return net


def wrap_blocks(net, **options):
    for index, block in enumerate(net.blocks):
        net.blocks[index] = torch.compile(block, **options)
    return net


def compile_function(net, **options):
    return torch.compile(lambda tokens: net(tokens) * 2, **options)


def compile_method(net, **options):
    return torch.compile(net.forward, **options)


def compile_forward(net, **options):
    net.forward = torch.compile(net.forward, **options)
    return net


WAYS = [
    compile_forward,
    compile_whole,
    compile_in_place,
    compile_blocks,
    wrap_blocks,
    compile_function,
    compile_method,
]


@pytest.mark.filterwarnings("ignore:.*a compiled function that calls")
@pytest.mark.parametrize(
    ("when", "backend"),
    [("before", "eager"), ("after", "aot_eager"), ("after learning", "eager")],
    ids=["before", "after", "learned"],
)
@pytest.mark.parametrize("way", WAYS)
def test_compiled(way, when, backend, fresh_dynamo):
    net = Gpt("before")
    run = None
    if when == "before":
        spare = copy.deepcopy(net)
        run = way(net, backend=backend)
        run(TOKENS)
    rig = Rig(net, twin=spare if when == "before" else None)
    if when == "after learning":
        rig.compare(TOKENS)
        rig.check(TOKENS)
        rig.check(TOKENS)
    run = way(net, backend=backend) if run is None else run
    twin = way(rig.twin, backend=backend)
    for _ in range(3):
        rig.check(TOKENS, model=run, twin=twin)
    rig.compare(TOKENS, model=run, twin=twin)
    rig.check(TOKENS, model=run, twin=twin)
    with torch.no_grad():
        rig.check(TOKENS, model=run, twin=twin, backward=False)
        rig.check(TOKENS, model=run, twin=twin, backward=False)


@pytest.mark.parametrize("way", WAYS[:5])
def test_compiled_code_has_no_graph_breaks(way, fresh_dynamo):
    rig = Rig(Gpt())
    run = way(rig.model, backend="eager", fullgraph=True)
    for _ in range(3):
        rig.check(TOKENS, model=run, twin=rig.twin)


@pytest.mark.filterwarnings("ignore:.*a compiled function that calls")
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_compiled_again_and_again(way, fresh_dynamo):
    rig = Rig(Gpt())
    counter = torch._dynamo.testing.CompileCounter()
    run = way(rig.model, backend=counter)
    for _ in range(3):
        rig.launch()
        run(TOKENS), run(TOKENS)
    count = counter.frame_count
    for _ in range(3):
        rig.launch()
        run(TOKENS), run(TOKENS)
    assert counter.frame_count == count


@pytest.mark.parametrize("way", [compile_blocks, wrap_blocks])
def test_compiled_blocks_wait_for_their_own(way, fresh_dynamo):
    net = Gpt()
    rig = Rig(net)
    run = way(net, backend="eager")
    for _ in range(3):
        rig.check(TOKENS, model=run, twin=rig.twin)
    together = rig.waited_together("blocks.2.first.weight")
    assert together and all(name.startswith("blocks.2.") for name in together)


@pytest.mark.parametrize("kind", ["whole", "part"])
def test_compiled_function_that_reads_before_it_calls(kind, fresh_dynamo):
    def make(net):
        part = net if kind == "whole" else net.embedding
        return torch.compile(
            lambda tokens: net.blocks[1].norm.weight * 2 + part(tokens).sum(), backend="eager"
        )

    for head_start in (0, 2):
        torch._dynamo.reset()
        rig = Rig(Gpt())
        for _ in range(head_start):
            rig.check(TOKENS)
        run, twin = make(rig.model), make(rig.twin)
        with pytest.warns(UserWarning, match="a compiled function that calls"):
            rig.check(TOKENS, model=run, twin=twin)
        for _ in range(3):
            rig.check(TOKENS, model=run, twin=twin)


def test_compiled_module_that_reaches_out(fresh_dynamo):
    rig = Rig(Reacher())
    rig.model.a.compile(backend="eager")
    for _ in range(3):
        rig.check(VECTORS)


def test_compiled_module_given_to_attach(fresh_dynamo):
    net = Gpt()
    run = torch.compile(net, backend="eager")
    rig = Rig(net, attach=run)
    for _ in range(3):
        rig.check(TOKENS, model=run)
    assert_same(
        {k.removeprefix("_orig_mod."): v for k, v in run.state_dict().items()},
        dict(rig.twin.state_dict()),
    )


def test_compiled_function_with_a_weight_in_a_watched_forward(fresh_dynamo):
    class Helped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(D, D)
            self.b = nn.Linear(D, D)

        def forward(self, x):
            return helper(self.a(x), self.b.weight)

    @torch.compile(backend="aot_eager")
    def helper(x, weight):
        return F.linear(x, weight) * 2

    rig = Rig(Helped())
    for _ in range(4):
        rig.check(VECTORS)


def test_compiled_with_checkpoints(fresh_dynamo):
    rig = Rig(Gpt("assigned", "non-reentrant"))
    rig.model.compile(backend="aot_eager")
    for _ in range(3):
        rig.check(TOKENS)


def test_exception_in_compiled_code(fresh_dynamo):
    rig = Rig(Failing())
    rig.model.compile(backend="eager")
    rig.check(VECTORS)
    rig.model.error = ValueError
    rig.launch()
    with pytest.raises(ValueError, match="in forward"):
        rig.model(VECTORS)
    rig.model.error = None
    for _ in range(2):
        rig.check(VECTORS)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("where", ["whole", "inside"])
def test_scripted_modules(where):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(D, D), nn.ReLU()))
    model = nn.Sequential(nn.Linear(D, D), scripted) if where == "inside" else scripted
    expected = model(VECTORS), scripted(VECTORS)
    with pytest.warns(UserWarning, match="a scripted module may read weights"):
        rig = Rig(model)
    for _ in range(4):
        rig.launch()
        assert_same(scripted(VECTORS), expected[1])
        assert_same(model(VECTORS), expected[0])
