"""LowBitOptimizer and the classes by name: torch's contract, and training close to fp32 state."""

import copy
import inspect
import pickle

import outboard
import pytest
import torch
from outboard.low_bit import NAMED_CLASSES
from support import (
    CPU,
    SIMULATED,
    assert_same,
    assert_step_does_not_wait,
    clones,
    make_parameters,
    train,
)

SHAPES = ((96, 64), (65, 65), (160,))


def low_bit(place, parameters, cls=torch.optim.AdamW, **options):
    options.setdefault("min_quantized_elements", 0)
    return outboard.LowBitOptimizer(parameters, cls, threads=2, simulate=place.simulate, **options)


NAMES = list(NAMED_CLASSES)


@pytest.mark.parametrize("state_format", ["8bit", "bf16", "fp32"])
def test_has_the_bits_of_the_offloaded_optimizer(place, state_format):
    p = make_parameters(place.device, torch.bfloat16, SHAPES)
    q = make_parameters(place.device, torch.bfloat16, SHAPES)
    train(low_bit(place, p, state_format=state_format), p, 3)
    offloaded = place.optimizer(q, state_format=state_format, min_quantized_elements=0)
    train(offloaded, q, 3)
    assert_same(clones(p), clones(q))


def test_keeps_nothing_of_a_device_on_the_host(place):
    p = make_parameters(place.device, torch.bfloat16, SHAPES)
    stats = low_bit(place, p).stats()
    assert stats.memory.host_weights == stats.memory.host_gradients == 0
    kind = "host_state" if place is CPU else "device_state"
    assert getattr(stats.memory, kind) > 0
    assert stats.elements == {"cpu" if place is CPU else "resident": sum(x.numel() for x in p)}


@pytest.mark.parametrize("name", NAMES)
def test_named_class_trains_copies_pickles_and_resumes(place, name):
    cls = NAMED_CLASSES[name]
    p = make_parameters(place.device, torch.bfloat16, SHAPES)
    optimizer = cls(p, 1e-3, simulate=place.simulate, min_quantized_elements=0, threads=2)
    assert type(optimizer).__name__ == name and cls is getattr(outboard, name)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(optimizer, p, 2)
    q, copied = copy.deepcopy((p, optimizer))
    r, pickled = pickle.loads(pickle.dumps((p, optimizer)))
    assert type(pickled) is cls and pickled.defaults == optimizer.defaults
    s = [torch.nn.Parameter(v) for v in clones(p)]
    resumed = cls(s, 0.5, simulate=place.simulate, min_quantized_elements=0, threads=2)
    resumed.load_state_dict(optimizer.state_dict(clone=True, compressed=True))
    for each, parameters in ((optimizer, p), (copied, q), (pickled, r), (resumed, s)):
        train(each, parameters, 2, first=2)
    for parameters in (q, r, s):
        assert_same(clones(parameters), clones(p))


@pytest.mark.parametrize("name", NAMES)
def test_named_class_has_a_real_signature(name):
    accepted = inspect.signature(NAMED_CLASSES[name]).parameters
    assert list(accepted)[:2] == ["params", "lr"]
    assert {"block_size", "max_grad_norm", "weight_decay"} <= set(accepted)
    assert not {"state_format", "optimizer_class", "foreach"} & set(accepted)
    assert "state_format" in NAMED_CLASSES[name].__doc__
    with pytest.raises(TypeError, match="foo"):
        NAMED_CLASSES[name](make_parameters(), foo=1)


def regression(make_optimizer, steps=150):
    """The first and the last loss of a small network that learns a fixed function."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(256, 64, generator=generator)
    targets = torch.tanh(inputs @ torch.randn(64, 32, generator=generator) / 8)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 32))
    optimizer = make_optimizer(model.parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


# Differences in what was learnt, relative to the whole way down.
@pytest.mark.parametrize("name, tolerance", [("8bit", 0.001), ("4bit", 0.02), ("fp8", 0.01)])
def test_loss_is_close_to_that_of_fp32_state(name, tolerance):
    start, usual = regression(lambda p: torch.optim.AdamW(p, lr=3e-3))
    _, low = regression(lambda p: low_bit(CPU, p, lr=3e-3, state_format=name))
    assert usual < 0.1 * start
    assert abs(low - usual) < tolerance * (start - usual)


def test_groups_schedulers_closures_and_norms(place):
    p = make_parameters(place.device, shapes=SHAPES)
    optimizer = low_bit(
        place,
        [{"params": p[:1], "lr": 1e-2}, {"params": p[1:2], "state_format": "fp32"}],
        max_grad_norm=1.0,
    )
    optimizer.add_param_group({"params": p[2:], "block_size": 64})
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = sum((q * q).sum() for q in p)
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(optimizer.step(closure).item())
        schedule.step()
    assert losses[2] < losses[0]
    assert optimizer.param_groups[0]["lr"] == 1e-2 / 8
    assert optimizer.stats().step.clip_factor < 1
    keys = [list(e) for e in optimizer.state_dict(compressed=True)["state"].values()]
    assert "exp_avg" in keys[1] and "exp_avg.sym8.64.codes" in keys[2]


@pytest.mark.parametrize("skips", [False, True])
def test_a_nan_is_skipped_when_asked(place, skips):
    p = make_parameters(place.device, shapes=SHAPES)
    optimizer = low_bit(place, p, skip_nonfinite=skips)
    train(optimizer, p, 1)
    before = clones(p)
    for q in p:
        q.grad = torch.full_like(q, float("nan"))
    optimizer.step()
    assert optimizer.stats().step.skipped_steps == int(skips)
    if skips:
        assert_same(clones(p), before)
    else:
        assert all(torch.isnan(q).all() for q in p)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(place, fused):
    p, q = (make_parameters(place.device, shapes=SHAPES) for _ in range(2))
    scaled, plain = low_bit(place, p, fused_amp=fused), low_bit(place, q)
    scaler = torch.amp.GradScaler(place.device, init_scale=1024.0, growth_interval=1000)
    for step in range(3):
        scaled.zero_grad()
        loss = sum((x * x).sum() for x in p) / (step + 1)
        scaler.scale(loss).backward()
        scaler.step(scaled)
        scaler.update()
        plain.zero_grad()
        (sum((x * x).sum() for x in q) / (step + 1)).backward()
        plain.step()
    assert_same(clones(p), clones(q))


@pytest.mark.parametrize("name", ["root8", "e4m3_root", "dynamic8_unsigned/8bit"])
def test_formats_without_negative_values_are_refused_for_signed_state(name):
    parameter = torch.nn.Parameter(torch.zeros(64, 128))
    with pytest.raises(ValueError, match="no negative values"):
        outboard.LowBitOptimizer([parameter], torch.optim.AdamW, state_format=name)


def test_bad_options_are_refused():
    p = make_parameters()
    for options, kind, message in (
        ({"state_format": "7bit"}, ValueError, "7bit"),
        ({"block_size": 5}, ValueError, "5"),
        ({"min_offload_elements": 1}, TypeError, "min_offload_elements"),
        ({"differentiable": True}, ValueError, "differentiable"),
        ({"lr": -1.0}, ValueError, "-1.0"),
    ):
        with pytest.raises(kind, match=message):
            low_bit(SIMULATED, p, **options)
    with pytest.raises(ValueError, match="native rule"):
        low_bit(SIMULATED, p, torch.optim.NAdam)
    with pytest.raises(TypeError, match=r"float64|Double"):
        low_bit(CPU, [torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))])


def test_repr_shows_groups_and_formats(place):
    p = make_parameters(place.device, torch.bfloat16, SHAPES)
    text = repr(low_bit(place, p, min_quantized_elements=4096))
    assert "sym8/128, root8/128" in text and "160 elements fp32" in text and "split" in text
    assert text.startswith("LowBitOptimizer (")


@pytest.mark.gpu
def test_step_does_not_wait_for_the_device():
    p = make_parameters("cuda", torch.bfloat16, SHAPES)
    optimizer = outboard.AdamW8bit(p, min_quantized_elements=0)
    train(optimizer, p, 2)
    assert_step_does_not_wait(optimizer, p)
