"""An engine whose weights hold NaN until waited for, and models that use weights in many ways.

Every forward of an attached model is compared, bit by bit, with that of a twin whose weights were
never in flight: an unwaited read shows, however it reaches the memory. No tests here.
"""

import copy
import functools
import threading

import torch
from outboard._attach import Attachment
from outboard._registry import Registry
from support import assert_same
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

D = 8


class FakeEngine:
    """Holds back weights: launch() fills them with NaN, wait_weights() brings them back."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.held = {}
        self.waits = []  # one list of indices per call
        self.orders = []
        self.synchronized = 0
        self.lock = threading.Lock()

    def launch(self, indices=None):
        for index in range(len(self.parameters)) if indices is None else indices:
            data = self.parameters[index].data
            self.held.setdefault(index, data.clone())
            data.fill_(float("nan"))
        self.waits.clear()

    def is_updating(self):
        return bool(self.held)

    def wait_weights(self, indices):
        assert all(0 <= index < len(self.parameters) for index in indices)
        with self.lock:
            self.waits.append(list(indices))
            for index in indices:
                if index in self.held:
                    self.parameters[index].data.copy_(self.held.pop(index))

    def set_use_order(self, order):
        assert sorted(order) == list(range(len(self.parameters)))
        self.orders.append(list(order))

    def synchronize(self):
        self.synchronized += 1
        self.wait_weights(list(self.held))


class Rig:
    """A model, its registry, a fake engine and the attachment; and a twin that nothing delays."""

    def __init__(self, model, parameters=None, attach=None, twin=None):
        self.twin = copy.deepcopy(model) if twin is None else twin
        self.model = model
        self.registry = Registry(lambda group: "adamw")
        self.engine = FakeEngine([])
        self.names = {}
        named = list(model.named_parameters()) if parameters is None else parameters
        self.register(named)
        self.announced = 0
        self.attachment = Attachment(
            model if attach is None else attach, self.registry, self.engine, self.announce
        )

    def register(self, named):
        for name, parameter in named:
            self.names[name] = len(self.engine.parameters)
            self.registry.add(self.names[name], [parameter], [name], "adamw", ["adamw"], [None])
            self.engine.parameters.append(parameter)

    def announce(self):
        self.announced += 1

    def launch(self, indices=None):
        """A step whose weights are late."""
        self.engine.launch(indices)
        self.attachment.step_taken()

    def check(self, *args, model=None, twin=None, backward=True, **kwargs):
        """One late step and forward (and backward), the same bits as the twin's."""
        self.launch()
        self.compare(*args, model=model, twin=twin, backward=backward, **kwargs)

    def compare(self, *args, model=None, twin=None, backward=True, **kwargs):
        result = (self.model if model is None else model)(*args, **kwargs)
        expected = (self.twin if twin is None else twin)(*args, **kwargs)
        assert not torch.isnan(expected).any()
        assert_same(result, expected)
        if not backward:
            return
        for net, output in ((self.model, result), (self.twin, expected)):
            net.zero_grad()
            output.sum().backward()
        for (name, p), q in zip(self.model.named_parameters(), self.twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                assert_same(p.grad, q.grad)

    def waited_together(self, name):
        """The names that the call which waited for a parameter waited for."""
        numbers = {index: n for n, index in self.names.items()}
        calls = [call for call in self.engine.waits if self.names[name] in call]
        assert len(calls) == 1, f"{name} is waited for {len(calls)} times"
        return {numbers[index] for index in calls[0]}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.first = nn.Linear(D, 2 * D)
        self.second = nn.Linear(2 * D, D)

    def forward(self, x):
        return x + self.second(F.gelu(self.first(self.norm(x))))


class Gpt(nn.Module):
    """Tied head by assignment or by use; blocks, checkpointed or not."""

    def __init__(self, tied="assigned", checkpointing=None):
        super().__init__()
        self.embedding = nn.Embedding(16, D)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(D)
        self.tied = tied
        self.checkpointing = checkpointing
        if tied == "assigned":
            self.head = nn.Linear(D, 16, bias=False)
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        if self.tied == "before":
            bias = self.embedding.weight.sum(1)
        x = self.embedding(tokens)
        for block in self.blocks:
            if self.checkpointing is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpointing == "reentrant")
        x = self.norm(x)
        if self.tied == "assigned":
            return self.head(x)
        y = F.linear(x, self.embedding.weight)
        return y + bias if self.tied == "before" else y


class Attention(nn.Module):
    """MultiheadAttention reads out_proj.weight without calling out_proj."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList(nn.MultiheadAttention(D, 2, batch_first=True) for _ in range(2))

    def forward(self, x):
        for layer in self.inner:
            x = x + layer(x, x, x, need_weights=False)[0]
        return x


class Lists(nn.Module):
    """Parameters in containers that are never called."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(D, D)) for _ in range(2))
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.randn(D))})

    def forward(self, x):
        return x @ self.weights[0] @ self.weights[1].t() * self.named["scale"]


class Hidden(nn.Module):
    """Uses weights through plain references, views made at construction, lists and keywords."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(D, D)
        self.b = nn.Linear(D, D)
        self.make()

    def make(self):
        self.plain = [self.b.weight]
        self.view = self.b.bias.view(2, D // 2)[0]

    def __deepcopy__(self, memo):
        new = Hidden()
        new.load_state_dict(self.state_dict())
        new.make()
        return new

    def forward(self, x):
        stacked = torch.cat([self.plain[0], self.plain[0].t()])
        x = F.linear(input=x, weight=stacked)[..., :D]
        return self.b(self.a(x) * torch.cat([self.view, self.view]))


class Reacher(nn.Module):
    """A module that reads another one's weight, which runs later."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(D, D)
        self.b = nn.Linear(D, D)
        self.a.others = [self.b]
        self.a.forward = functools.partial(Reacher.borrow, self.a)

    def __deepcopy__(self, memo):
        new = Reacher()
        new.load_state_dict(self.state_dict())
        return new

    @staticmethod
    def borrow(module, x):
        return F.linear(x, module.weight + module.others[0].weight, module.bias)

    def forward(self, x):
        return self.b(self.a(x))


class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(D, D)
        self.low = nn.Linear(D, 2, bias=False)
        self.high = nn.Linear(2, D, bias=False)

    def forward(self, x):
        return F.linear(x, self.base.weight + self.high.weight @ self.low.weight, self.base.bias)


class Shared(nn.Module):
    """One module called twice, one parameter owned by two."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(D, D)
        self.b = nn.Linear(D, D)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.a(self.b(self.a(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(D, D, num_layers=2)
        self.gru = nn.GRU(D, D)
        self.cell = nn.RNNCell(D, D)

    def forward(self, x):
        self.lstm.flatten_parameters()
        x = self.gru(self.lstm(x)[0])[0]
        return self.cell(x[:, 0] if x.dim() == 3 else x)


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight.t(), x.t() @ g


class Functions(nn.Module):
    """An autograd function, and direct calls of forward that bypass hooks."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, D))
        self.inner = nn.Linear(D, D)
        self.last = nn.Linear(D, D)

    def forward(self, x):
        return self.last(self.inner.forward(Custom.apply(x, self.weight)))


class Tree(nn.Module):
    """Calls itself."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(D, D)
        self.b = nn.Linear(D, D)

    def forward(self, x, depth=2):
        x = self.a(x)
        if depth:
            x = self(x, depth - 1)
        return F.linear(x, self.b.weight)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(D, D) for _ in range(4))

    def forward(self, x, order=(0, 1, 2, 3), functional=()):
        for index in order:
            part = self.parts[index]
            x = F.linear(x, part.weight, part.bias) if index in functional else part(x)
        return x


class Failing(Flow):
    error = None

    def forward(self, x):
        x = self.parts[0](x)
        if self.error is not None:
            raise self.error("in forward")
        return self.parts[2](self.parts[1](x))


TOKENS = torch.arange(12).reshape(3, 4)
VECTORS = torch.linspace(-1, 1, 3 * D).reshape(3, D)
ZOO = {
    "assigned": (Gpt, TOKENS),
    "head used by function": (lambda: Gpt("after"), TOKENS),
    "head used before": (lambda: Gpt("before"), TOKENS),
    "reentrant": (lambda: Gpt("assigned", "reentrant"), TOKENS),
    "non-reentrant": (lambda: Gpt("after", "non-reentrant"), TOKENS),
    "attention": (Attention, VECTORS[None]),
    "lists": (Lists, VECTORS),
    "hidden": (Hidden, VECTORS),
    "reacher": (Reacher, VECTORS),
    "lora": (Lora, VECTORS),
    "shared": (Shared, VECTORS),
    "recurrent": (Recurrent, VECTORS),
    "functions": (Functions, VECTORS),
    "tree": (Tree, VECTORS),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(D, 2, 2 * D, 0.0, batch_first=True), 2
        ),
        VECTORS[None],
    ),
    "batch norm": (lambda: nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D)), VECTORS),
}


def prepared(model, x, **options):
    rig = Rig(model, **options)
    rig.compare(x)
    rig.check(x)
    return rig
