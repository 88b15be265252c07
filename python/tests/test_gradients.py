"""Gradients of every kind: edited, assigned, missing, oddly laid out, empty, sparse; and weights
that somebody else changed."""

import pytest
import torch
from support import (
    assert_same,
    backward,
    clones,
    make_gradients,
    make_parameters,
    reference_step,
    snapshot,
    train,
)


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
