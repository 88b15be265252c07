"""Gradients of every kind: accumulated, edited, clipped, missing, non-finite, oddly laid out."""

import math

import pytest
import torch
from support import assert_same, backward, clones, make_gradients, make_parameters, snapshot, train


def reference_step(parameters, gradients, optimizer, max_norm=None):
    """One step of a torch optimizer whose gradients are given, clipped in fp32."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.cpu().float()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


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
    low = optimizer.state[p[0]].get("master")
    high = p[0].detach().cpu().view(torch.int16).to(torch.int32)
    master = ((high << 16) + low.cpu().to(torch.int32)).view(torch.float32)
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
    train(optimizer, p, 1, first=1)
    assert optimizer.stats().step.clip_factor == 1


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


@pytest.mark.parametrize("edit", ["clip", "scale", "replace", "value", "data"])
def test_gradient_edited_after_backward_is_used(place, edit):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, torch.optim.SGD, lr=0.5)
    reference = torch.optim.SGD(twins, lr=0.5, fused=True)

    def change(parameters):
        if edit == "clip":
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        elif edit == "value":
            torch.nn.utils.clip_grad_value_(parameters, 0.5)
        for q in parameters:
            if edit == "scale":
                q.grad.mul_(0.25)
            elif edit == "replace":
                q.grad = q.grad * 0.25
            elif edit == "data":
                q.grad = torch.full_like(q.grad, 0.125)

    for step in range(2):
        for parameters, stepper in ((p, optimizer), (twins, reference)):
            stepper.zero_grad()
            backward(parameters, make_gradients(parameters, step))
            change(parameters)
            stepper.step()
    optimizer.synchronize()
    if place.device == "cpu":
        assert_same(clones(p), clones(twins))
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-6, atol=1e-6)


def test_gradient_assigned_without_backward_is_used(place):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, lr=1e-2)
    for q, gradient in zip(p, make_gradients(p, 0), strict=True):
        q.grad = gradient
    optimizer.step()
    optimizer.synchronize()
    train(torch.optim.AdamW(twins, lr=1e-2, fused=True), twins, 1)
    assert_same(clones(p), clones(twins))


@pytest.mark.parametrize("offload_gradients", [False, True])
def test_frozen_unfrozen_and_unused_parameters(place, offload_gradients):
    p, twins = make_parameters(place.device), make_parameters()
    p[0].requires_grad_(False)
    optimizer = place.optimizer(p, lr=1e-2, offload_gradients=offload_gradients)
    reference = torch.optim.AdamW(twins, lr=1e-2, fused=True)
    used = [[1, 2], [1], [0, 1], [0, 1, 2]]
    for step, indices in enumerate(used):
        p[0].requires_grad_(0 in indices)
        for parameters, stepper in ((p, optimizer), (twins, reference)):
            chosen = [parameters[i] for i in indices]
            stepper.zero_grad()
            backward(chosen, make_gradients(chosen, step))
            stepper.step()
    optimizer.synchronize()
    assert_same(clones(p), clones(twins))
    assert [float(optimizer.state[q]["step"]) for q in p] == [2, 4, 2]


def test_step_without_any_gradient_does_nothing(place):
    p = make_parameters(place.device)
    before = clones(p)
    optimizer = place.optimizer(p)
    optimizer.step()
    assert_same(clones(p), before)


@pytest.mark.parametrize("offload_gradients", [False, True])
def test_tied_weights_are_updated_once(place, offload_gradients):
    def run(device, make):
        torch.manual_seed(0)
        embedding, head = torch.nn.Embedding(96, 64), torch.nn.Linear(64, 96, bias=False)
        head.weight = embedding.weight
        model = torch.nn.Sequential(embedding, head).to(device)
        optimizer = make(model.parameters())
        for step in range(3):
            optimizer.zero_grad()
            model(torch.arange(step, step + 16, device=device)).square().mean().backward()
            optimizer.step()
        return clones(model.parameters())

    def make_ours(parameters):
        return place.optimizer(
            parameters,
            torch.optim.SGD,
            lr=0.5,
            momentum=0.9,
            offload_gradients=offload_gradients,
        )

    ours = run(place.device, make_ours)
    theirs = run(place.device, lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
    assert len(ours) == 1
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided", "channels_last"])
def test_odd_gradient_layouts_equal_contiguous_ones(place, layout):
    shape = (16, 8, 8, 8)
    p = make_parameters(place.device, shapes=(shape,))
    twins = make_parameters(place.device, shapes=(shape,))
    gradient = make_gradients(p, 0)[0]
    if layout == "transposed":
        gradient = gradient.transpose(0, 0).permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    elif layout == "expanded":
        gradient = gradient[:1].expand(shape)
    elif layout == "strided":
        gradient = torch.stack([gradient, gradient], -1)[..., 0]
    else:
        gradient = gradient.to(memory_format=torch.channels_last)
    first, second = place.optimizer(p), place.optimizer(twins)
    p[0].grad = gradient
    twins[0].grad = gradient.contiguous()
    first.step()
    second.step()
    assert_same(snapshot(first, p), snapshot(second, twins))


def test_non_contiguous_parameter_is_served_or_refused_by_name(place):
    base = make_parameters(place.device, shapes=((96, 64),))[0].detach()
    parameter = torch.nn.Parameter(base.t())
    try:
        optimizer = place.optimizer([("turned", parameter)], lr=1e-2)
    except ValueError as error:
        assert "turned" in str(error) and "contiguous" in str(error)
        return
    twin = torch.nn.Parameter(base.t().contiguous())
    reference = place.optimizer([twin], lr=1e-2)
    train(optimizer, [parameter], 2)
    train(reference, [twin], 2)
    assert_same(clones([parameter]), clones([twin]))


@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0), (1,), (2,), (255,), (257,), (4095,), (4097,), (65, 65)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_edge_shapes(place, shape, dtype):
    p = make_parameters(place.device, dtype, (shape,))
    q = [torch.nn.Parameter(p[0].detach().float().cpu().clone())]
    optimizer = place.optimizer(p, lr=1e-2, min_offload_elements=0, max_grad_norm=1e9)
    reference = torch.optim.AdamW(q, lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        gradients = make_gradients(p, step)
        backward(p, gradients)
        optimizer.step()
        reference_step(q, gradients, reference)
    optimizer.synchronize()
    torch.testing.assert_close(p[0].detach().cpu(), q[0].detach().to(dtype))
    if p[0].numel() > 0:  # an empty one has nothing to keep
        state = optimizer.state[p[0]]
        assert state["exp_avg"].shape == shape and float(state["step"]) == 2


def test_sparse_gradient_is_refused_by_name(place):
    embedding = torch.nn.Embedding(128, 64, sparse=True).to(place.device)
    before = clones(embedding.parameters())
    optimizer = place.optimizer(embedding.named_parameters())
    with pytest.raises((RuntimeError, ValueError), match=r"weight.*sparse|sparse.*weight"):
        embedding(torch.tensor([1, 2], device=place.device)).sum().backward()
        optimizer.step()
    assert_same(clones(embedding.parameters()), before)


def test_fp32_gradient_of_a_bf16_parameter_is_refused_or_used(place):
    parameter = torch.nn.Parameter(torch.ones(96, 64, dtype=torch.bfloat16, device=place.device))
    optimizer = place.optimizer([parameter])
    with pytest.raises(RuntimeError):  # torch itself does not let it be assigned
        parameter.grad = torch.ones(96, 64, device=place.device)
    optimizer.step()


@pytest.mark.parametrize("change", ["load", "copy", "data"])
def test_weights_changed_between_steps_are_noticed(place, change):
    p = make_parameters(place.device, torch.bfloat16)
    optimizer = place.optimizer(p, lr=1e-2)
    train(optimizer, p, 2)
    with torch.no_grad():
        for q in p:
            if change == "load":
                q.copy_(torch.full_like(q, 7))
            elif change == "copy":
                q.fill_(7)
            else:
                q.data.fill_(7)
                torch._C._autograd._unsafe_set_version_counter((q,), (q._version + 1,))
    optimizer.param_groups[0].update(lr=0.0)
    train(optimizer, p, 1, first=2)
    assert all((q == 7).all() for q in p)


def test_parameter_resized_after_construction_is_refused(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer([(f"p{i}", q) for i, q in enumerate(p)])
    train(optimizer, p, 1)
    p[0].data = torch.zeros(7, device=place.device)
    p[0].grad = None
    p[0].grad = torch.zeros(7, device=place.device)
    with pytest.raises((RuntimeError, ValueError), match="p0"):
        optimizer.step()
