"""What torch promises of every optimizer: groups, hooks, closures, profiler ranges."""

import threading
import warnings

import outboard
import pytest
import torch
from support import (
    SIMULATED,
    assert_same,
    backward,
    clones,
    make_gradients,
    make_parameters,
    snapshot,
    train,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook


def test_is_an_optimizer_with_defaults_state_and_hooks(place):
    optimizer = place.optimizer(make_parameters(place.device), lr=0.5)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.defaults == torch.optim.AdamW([torch.zeros(1)], lr=0.5).defaults
    assert len(optimizer.state) == 0
    assert not optimizer._optimizer_step_pre_hooks


def test_groups_are_the_dicts_that_were_given(place):
    p = make_parameters(place.device)
    given = [{"params": [p[0]], "lr": 0.5}, {"params": iter(p[1:]), "name": "rest"}]
    optimizer = place.optimizer(given)
    reference = torch.optim.AdamW(
        [{"params": [torch.zeros(1)], "lr": 0.5}, {"params": [torch.zeros(1)], "name": "rest"}]
    )
    train(optimizer, p, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    for group, mine, theirs in zip(
        optimizer.param_groups, given, reference.param_groups, strict=True
    ):
        assert group is mine
        assert list(group) == list(theirs)
    assert optimizer.param_groups[0]["params"][0] is p[0]
    assert optimizer.param_groups[1]["params"][1] is p[2]


@pytest.mark.parametrize("kind", ["float", "cpu", "place"])
def test_learning_rate_keeps_its_kind(place, kind):
    rate = (
        0.25
        if kind == "float"
        else torch.tensor(0.25, device="cpu" if kind == "cpu" else place.device)
    )
    parameters, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(parameters, torch.optim.SGD, lr=rate)
    train(optimizer, parameters, 2)
    train(torch.optim.SGD(twins, lr=0.25, fused=True), twins, 2)
    assert_same(clones(parameters), clones(twins))
    plain = torch.optim.SGD(twins, lr=0.25).state_dict()
    for loaded in (optimizer.state_dict(), plain):
        optimizer.load_state_dict(loaded)
        assert type(optimizer.param_groups[0]["lr"]) is type(rate)
        assert float(optimizer.param_groups[0]["lr"]) == 0.25
    if kind != "float":
        assert optimizer.param_groups[0]["lr"].device == rate.device


def test_group_can_be_added_after_steps(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p[:1], lr=1e-2)
    train(optimizer, p[:1], 2)
    optimizer.add_param_group({"params": p[1:], "lr": 1e-1})
    train(optimizer, p, 2, first=2)
    assert [float(optimizer.state[q]["step"]) for q in p] == [4, 2, 2]
    other = place.optimizer([{"params": p[:1]}, {"params": p[1:]}])
    other.load_state_dict(optimizer.state_dict(clone=True))
    assert_same(other.state[p[2]], optimizer.state[p[2]])
    assert other.param_groups[1]["lr"] == 1e-1


@pytest.mark.parametrize("group", [{"params": []}, "duplicate", "range"])
def test_bad_group_is_refused_and_changes_nothing(place, group):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    if group == "duplicate":
        group = {"params": [p[0]]}
    if group == "range":
        group = {"params": make_parameters(place.device, seed=1), "lr": -1.0}
    with pytest.raises(ValueError):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    train(optimizer, p, 1)


def test_parameter_names_are_kept(place):
    model = torch.nn.Linear(64, 96).to(place.device)
    optimizer = place.optimizer(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_zero_grad_sets_gradients_to_none_or_zero(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    backward(p, make_gradients(p, 0))
    optimizer.zero_grad(set_to_none=False)
    assert all((q.grad == 0).all() for q in p)
    optimizer.zero_grad()
    assert all(q.grad is None for q in p)


def test_zero_grad_forgets_gradients_that_were_copied(place):
    for offload_gradients in (False, True):
        p = make_parameters(place.device)
        before = clones(p)
        optimizer = place.optimizer(p, offload_gradients=offload_gradients)
        backward(p, make_gradients(p, 0))
        optimizer.zero_grad()
        optimizer.step()
        optimizer.synchronize()
        assert_same(clones(p), before)
        assert len(optimizer.state) == 0


def test_closure_runs_once_with_gradients_enabled(place):
    p, calls = make_parameters(place.device), []
    optimizer = place.optimizer(p, lr=1e-2)
    twins = make_parameters()
    train(torch.optim.AdamW(twins, lr=1e-2, fused=True), twins, 1)

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        optimizer.zero_grad()
        backward(p, make_gradients(p, 0))
        return 42.0

    assert optimizer.step(closure) == 42.0
    assert calls == [1]
    assert_same(clones(p), clones(twins))


def test_step_hooks_fire_in_order_and_once(place):
    p, seen = make_parameters(place.device), []
    optimizer = place.optimizer(p, torch.optim.Adadelta)  # its inner optimizers fire none
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global")),
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
        optimizer.register_step_post_hook(lambda *_: seen.append("post")),
    ]
    train(optimizer, p, 1)
    for handle in handles:
        handle.remove()
    train(optimizer, p, 1)
    assert seen == ["global", "pre", "post"]


def test_profiler_sees_step_and_zero_grad(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    with torch.profiler.profile(acc_events=True) as profile:
        train(optimizer, p, 2)
    # The ranges as the CPU saw them; on a GPU its own timeline repeats some.
    on_cpu = torch.autograd.DeviceType.CPU
    counts = {e.key: e.count for e in profile.key_averages() if e.device_type == on_cpu}
    assert counts["Optimizer.step#CPUOffloadOptimizer.step"] == 2
    assert counts["outboard.begin_step"] == counts["outboard.finish_step"] == 2
    assert counts["Optimizer.zero_grad#CPUOffloadOptimizer.zero_grad"] == 2


def test_two_optimizers_share_nothing(place):
    p, q = make_parameters(place.device), make_parameters(place.device, seed=1)
    twins, others = make_parameters(), make_parameters(seed=1)
    first = place.optimizer(p, lr=1e-2, threads=1)
    second = place.optimizer(q, torch.optim.SGD, lr=1e-1, offload_gradients=True)
    for step in range(3):
        for optimizer, parameters in ((first, p), (second, q)):
            optimizer.zero_grad()
            backward(parameters, make_gradients(parameters, step))
        first.step()
        second.step()
    first.synchronize()
    second.synchronize()
    train(torch.optim.AdamW(twins, lr=1e-2, fused=True), twins, 3)
    train(torch.optim.SGD(others, lr=1e-1, fused=True), others, 3)
    assert_same(clones(p) + clones(q), clones(twins) + clones(others))


def test_works_on_another_thread(place):
    p, twins = make_parameters(place.device), make_parameters(place.device)
    optimizer, reference = place.optimizer(p), place.optimizer(twins)
    worker = threading.Thread(target=train, args=(optimizer, p, 2))
    worker.start()
    worker.join()
    train(reference, twins, 2)
    assert_same(snapshot(optimizer, p), snapshot(reference, twins))


def test_default_dtype_and_device_do_not_matter(place):
    p, twins = make_parameters(place.device), make_parameters(place.device)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            optimizer = place.optimizer(p)
        train(optimizer, p, 2)
        state = optimizer.state_dict(clone=True)["state"]
    finally:
        torch.set_default_dtype(torch.float32)
    reference = place.optimizer(twins)
    train(reference, twins, 2)
    assert_same(state, reference.state_dict()["state"])


def test_repr_and_stats_report(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p, lr=0.125)
    train(optimizer, p, 3)
    stats = optimizer.stats()
    assert "lr: 0.125" in repr(optimizer) and "AdamW" in repr(optimizer)
    assert stats.step.steps == 3 and stats.step.skipped_steps == 0
    assert sum(stats.elements.values()) == sum(q.numel() for q in p)
    large = sum(q.numel() for q in p if q.numel() >= 4096)
    if place.device != "cpu" or place.simulate:
        assert stats.elements["host"] == large
        assert large * 8 <= stats.memory.host_state <= large * 8.4
    assert "host_state" in repr(stats)


def test_construction_and_steps_warn_about_nothing_on_the_cpu():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = make_parameters()
        train(SIMULATED.optimizer(p), p, 2)


def test_lightning_style_class_swap_works(place):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, lr=1e-2)

    class Wrapper:
        pass

    optimizer.__class__ = type("Wrapped", (Wrapper, outboard.CPUOffloadOptimizer), {})
    train(optimizer, p, 2)
    train(torch.optim.AdamW(twins, lr=1e-2, fused=True), twins, 2)
    assert_same(clones(p), clones(twins))


def test_accelerate_style_prepare_works(place):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, lr=1e-2)
    optimizer.load_state_dict(optimizer.state_dict())  # of an empty optimizer
    plain = optimizer.step
    optimizer.step = lambda closure=None: plain(closure)
    train(optimizer, p, 2)
    train(torch.optim.AdamW(twins, lr=1e-2, fused=True), twins, 2)
    assert_same(clones(p), clones(twins))
