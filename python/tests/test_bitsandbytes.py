"""Steps of bitsandbytes' 8-bit AdamW on a GPU beside ours with the state format dynamic8, each from
what it has stored, which ours reads: what is stored next is the same but for rounding."""

import outboard
import pytest
import torch
from support import clones, make_gradients, make_parameters

pytestmark = pytest.mark.gpu

SHAPES = ((96, 64), (65, 65), (33, 257))  # blocks of 256: whole ones, and two tails
OPTIONS = {"lr": 1e-3, "weight_decay": 0.05}
# Ours and theirs of each moment. They take 1 - beta in fp32, which is 1.3e-5 less for 0.999, and
# divide approximately.
MOMENTS = (
    ("exp_avg.dynamic8_signed.256", "1", 1e-6),
    ("exp_avg_sq.dynamic8_unsigned.256", "2", 2e-5),
)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def pair(request):
    """The same parameters under both optimizers: (ours, its parameters, theirs, its parameters)."""
    theirs = pytest.importorskip("bitsandbytes").optim.AdamW8bit
    p, q = (make_parameters("cuda", request.param, SHAPES) for _ in range(2))
    ours = outboard.LowBitOptimizer(
        p,
        torch.optim.AdamW,
        state_format="dynamic8",
        master="auto" if request.param is torch.float32 else "fp32",  # weights rounded to nearest
        min_quantized_elements=0,
        **OPTIONS,
    )
    return ours, p, theirs(q, min_8bit_size=0, **OPTIONS), q


def step_both(pair, number):
    ours, p, theirs, q = pair
    for parameters, optimizer in ((p, ours), (q, theirs)):
        for parameter, gradient in zip(parameters, make_gradients(q, number), strict=True):
            parameter.grad = gradient
        optimizer.step()


def take_over(pair):
    """Makes our weights and state theirs."""
    ours, p, theirs, q = pair
    with torch.no_grad():
        torch._foreach_copy_(p, q)
    saved = ours.state_dict(clone=True, compressed=True)
    for index, parameter in enumerate(q):
        if "master" in saved["state"][index]:
            saved["state"][index]["master"] = parameter.detach().float()
        for prefix, number, _ in MOMENTS:
            state = theirs.state[parameter]
            saved["state"][index][f"{prefix}.codes"] = state[f"state{number}"].flatten().cpu()
            saved["state"][index][f"{prefix}.scales"] = state[f"absmax{number}"].cpu()
    ours.load_state_dict(saved)


def assert_state_agrees(pair):
    ours, _, theirs, q = pair
    saved = ours.state_dict(compressed=True)["state"]
    for prefix, number, tolerance in MOMENTS:
        apart = 0
        for index, parameter in enumerate(q):
            state = theirs.state[parameter]
            scales = saved[index][f"{prefix}.scales"].cpu()
            expected = state[f"absmax{number}"].cpu()
            torch.testing.assert_close(scales, expected, rtol=tolerance, atol=0)
            codes = saved[index][f"{prefix}.codes"].cpu().int()
            steps = (codes - state[f"state{number}"].flatten().cpu().int()).abs()
            assert steps.max() <= 1
            apart += int(steps.sum())
        assert apart <= 1e-3 * sum(parameter.numel() for parameter in q)


def assert_weights_agree(pair, before):
    _, p, _, q = pair
    apart = 0
    for start, mine, other in zip(before, p, q, strict=True):
        other = other.detach()
        larger = torch.maximum(mine.detach().abs(), other.abs())
        ulp = torch.nextafter(larger, torch.full_like(larger, torch.inf)).double() - larger.double()
        difference = (mine.detach().double() - other.double()).abs()
        if start.dtype is torch.float32:
            # They decay after the update, not before it.
            decayed = OPTIONS["lr"] * OPTIONS["weight_decay"]
            update = (other.double() - start.double()).abs()
            assert (difference <= 2 * ulp + (8e-5 + decayed) * update).all()
        else:
            # They round before they decay as well.
            assert (difference <= ulp).all()
            apart += int((difference > 0).sum())
    assert apart <= 0.02 * sum(parameter.numel() for parameter in q)


def test_steps_agree_from_the_same_state(pair):
    for number in range(5):
        before = clones(pair[3])
        step_both(pair, number)
        assert_state_agrees(pair)
        assert_weights_agree(pair, before)
        take_over(pair)
