"""What the tests share: places, parameters, chosen gradients, comparisons. No tests here."""

from dataclasses import dataclass

import outboard
import torch

# Whole vectors of 16, where torch's fused kernels define every bit; one above and one below the
# default offload threshold of 4096 elements, one that makes several chunks.
SHAPES = ((96, 64), (160,), (64, 192))


@dataclass(frozen=True)
class Place:
    """Where parameters live, and the options that make an optimizer offload from there."""

    name: str
    device: str
    simulate: tuple | None = None

    def optimizer(self, params, cls=torch.optim.AdamW, **options):
        """A CPUOffloadOptimizer for parameters that live here."""
        options.setdefault("threads", 2)
        options.setdefault("simulate", self.simulate)
        return outboard.CPUOffloadOptimizer(params, cls, **options)


CPU = Place("cpu", "cpu")
SIMULATED = Place("simulated", "cpu", (7, 200, 1))
CUDA = Place("cuda", "cuda")


def make_parameters(device="cpu", dtype=torch.float32, shapes=SHAPES, seed=0):
    """Parameters with the same values wherever they live."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]
    return [torch.nn.Parameter(v.to(dtype).to(device)) for v in values]


def make_gradients(parameters, seed, scale=1.0):
    """One gradient for each parameter, of its dtype, on its device."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return [
        (scale * torch.randn(p.shape, generator=generator, dtype=torch.float32))
        .to(p.dtype)
        .to(p.device)
        for p in parameters
    ]


def backward(parameters, gradients, factor=1.0):
    """A backward pass through autograd that gives each parameter exactly that gradient."""
    losses = [(p * (g * factor)).sum() for p, g in zip(parameters, gradients, strict=True)]
    torch.autograd.backward(losses, [torch.ones_like(loss) for loss in losses])


def train(optimizer, parameters, steps, first=0, scale=1.0):
    """Steps first, first + 1, … with gradients that depend on the step alone."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(parameters, make_gradients(parameters, step, scale))
        optimizer.step()
    if hasattr(optimizer, "synchronize"):
        optimizer.synchronize()


def assert_step_does_not_wait(optimizer, parameters):
    """A step of an optimizer on CUDA returns while the device is still busy with earlier work."""
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)
    optimizer.step()
    done.record()
    assert not done.query()
    torch.cuda.synchronize()


def reference_step(parameters, gradients, optimizer, max_norm=None):
    """One step of a torch optimizer whose gradients are given, clipped in fp32."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.cpu().float()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def assert_same(left, right):
    """Every element has the same bits (NaN included). Takes tensors, or lists or dicts of them."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), list(right.values())
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
        return
    if not isinstance(left, torch.Tensor):
        assert left == right
        return
    left, right = left.detach().cpu(), right.detach().cpu()
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    differs = left.reshape(-1).view(torch.uint8) != right.reshape(-1).view(torch.uint8)
    assert not differs.any(), f"{differs.sum()} bytes differ: {left} and {right}"


def clones(tensors):
    """Copies that later steps do not change."""
    return [t.detach().clone() for t in tensors]


def snapshot(optimizer, parameters):
    """Weights and state, as they are now."""
    return clones(parameters), optimizer.state_dict(clone=True)["state"]


def master_of(optimizer, parameter):
    """The full-precision value of a parameter."""
    low = optimizer.state[parameter].get("master")
    if low is None:
        return parameter.detach().float().cpu()
    if low.dtype is torch.float32:
        return low.detach().cpu()
    high = parameter.detach().cpu().view(torch.int16).to(torch.int32)
    missing = low.cpu().to(torch.int32) << (8 if low.dtype is torch.int8 else 0)
    return ((high << 16) + missing).view(torch.float32)
