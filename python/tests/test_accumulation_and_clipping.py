"""Accumulation over micro-batches, clipping, and steps skipped because of Inf or NaN."""

import math

import pytest
import torch
from support import (
    assert_same,
    backward,
    clones,
    make_gradients,
    make_parameters,
    master_of,
    reference_step,
    snapshot,
    train,
)


@pytest.mark.parametrize("offload_gradients", [False, True])
@pytest.mark.parametrize("micro_steps", [1, 2, 4])
@pytest.mark.parametrize("announced", [False, True])
def test_accumulation_adds_in_order(place, offload_gradients, micro_steps, announced):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(
        p, lr=1e-2, offload_gradients=offload_gradients, chunk_elements=4096
    )
    reference = torch.optim.AdamW(twins, lr=1e-2, fused=True)
    for step in range(3):
        optimizer.zero_grad()
        total = None
        for micro in range(micro_steps):
            gradients = make_gradients(p, step * micro_steps + micro)
            total = (
                gradients
                if total is None
                else [a + b for a, b in zip(total, gradients, strict=True)]
            )
            if announced and micro + 1 < micro_steps:
                with optimizer.accumulate():
                    backward(p, gradients)
            else:
                backward(p, gradients)
        optimizer.step()
        reference_step(twins, total, reference)
    optimizer.synchronize()
    assert_same(clones(p), clones(twins))


def test_bf16_gradients_are_added_in_fp32_when_offloaded(offloaded):
    p = make_parameters(offloaded.device, torch.bfloat16, ((96, 64),))
    optimizer = offloaded.optimizer(p, torch.optim.SGD, lr=1.0, offload_gradients=True)
    start = p[0].detach().float().cpu().clone()
    small = [torch.full_like(p[0], 2.0**-12)]
    backward(p, [torch.ones_like(p[0])])
    for _ in range(8):
        backward(p, small)
    optimizer.step()
    master = master_of(optimizer, p[0])
    # Added in bf16, the eight small ones would vanish.
    assert_same(master, start - (1 + 8 * 2.0**-12))


@pytest.mark.parametrize("offload_gradients", [False, True])
def test_device_gradients_are_freed_if_asked_for(offloaded, offload_gradients):
    p = make_parameters(offloaded.device)
    optimizer = offloaded.optimizer(p, offload_gradients=offload_gradients)
    backward(p, make_gradients(p, 0))
    assert (p[0].grad is None) == offload_gradients
    optimizer.step()


@pytest.mark.parametrize("offload_gradients", [False, True])
@pytest.mark.parametrize("max_norm", [0.5, 100.0, 1e6])
@pytest.mark.parametrize("how", ["option", "method"])
def test_clipping_equals_torchs_in_fp32(place, offload_gradients, max_norm, how):
    p, twins = make_parameters(place.device), make_parameters()
    options = {"max_grad_norm": max_norm} if how == "option" else {}
    optimizer = place.optimizer(
        p, torch.optim.SGD, lr=0.5, offload_gradients=offload_gradients, **options
    )
    reference = torch.optim.SGD(twins, lr=0.5, fused=True)
    for step in range(3):
        optimizer.zero_grad()
        gradients = make_gradients(p, step)
        backward(p, gradients)
        if how == "method":
            norm = optimizer.clip_grad_norm_(max_norm)
            expected = torch.nn.utils.get_total_norm([g.cpu() for g in gradients])
            assert norm.shape == () and norm.dtype is torch.float32
            torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        optimizer.step()
        reference_step(twins, gradients, reference, max_norm)
    optimizer.synchronize()
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=3e-7, atol=1e-6)
    if max_norm == 1e6:
        assert_same(clones(p), clones(twins))
        assert optimizer.stats().step.clip_factor == 1.0


def test_clip_method_serves_one_step_only(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p, torch.optim.SGD, lr=1.0)
    backward(p, make_gradients(p, 0))
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()
    assert optimizer.stats().step.clip_factor < 1
    backward(p, make_gradients(p, 1))
    optimizer.step()
    assert optimizer.stats().step.clip_factor == 1


def test_smaller_of_two_clip_norms_counts(place):
    for option, method in ((1.0, 2.0), (2.0, 1.0), (1.0, math.inf)):
        p = make_parameters(place.device)
        optimizer = place.optimizer(p, max_grad_norm=option)
        backward(p, make_gradients(p, 0))
        norm = optimizer.clip_grad_norm_(method)
        optimizer.step()
        assert optimizer.stats().step.clip_factor == pytest.approx(1.0 / norm.item(), rel=1e-5)


def test_clip_method_refuses_other_norms_and_bad_values(place):
    optimizer = place.optimizer(make_parameters(place.device))
    with pytest.raises(ValueError, match=r"norm_type 1"):
        optimizer.clip_grad_norm_(1.0, norm_type=1.0)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm"):
            optimizer.clip_grad_norm_(bad)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("offload_gradients", [False, True])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_non_finite_gradient_skips_the_step_exactly(place, value, offload_gradients, where):
    p = make_parameters(place.device, torch.bfloat16)
    optimizer = place.optimizer(p, offload_gradients=offload_gradients, max_grad_norm=1.0)
    train(optimizer, p, 2)
    before = snapshot(optimizer, p)
    gradients = make_gradients(p, 2)
    gradients[where].view(-1)[-1] = value
    optimizer.zero_grad()
    backward(p, gradients)
    optimizer.step()
    optimizer.synchronize()
    assert_same(snapshot(optimizer, p), before)
    stats = optimizer.stats().step
    assert (stats.steps, stats.skipped_steps) == (2, 1)
    train(optimizer, p, 1, first=3)
    assert optimizer.stats().step.steps == 3


def test_norm_that_overflows_counts_as_non_finite(place):
    p = make_parameters(place.device)
    before = clones(p)
    optimizer = place.optimizer(p)
    backward(p, [torch.full_like(q, 1e30) for q in p])
    optimizer.step()
    optimizer.synchronize()
    assert_same(clones(p), before)


def test_non_finite_values_propagate_if_asked_for(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p, torch.optim.SGD, lr=1.0, skip_nonfinite=False)
    gradients = make_gradients(p, 0)
    gradients[0][3, 5] = math.nan
    backward(p, gradients)
    optimizer.step()
    optimizer.synchronize()
    assert p[0].isnan().sum() == 1 and p[0][3, 5].isnan()
