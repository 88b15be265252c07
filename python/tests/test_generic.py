"""Optimizer classes without a native rule: torch's, and one of the user's own."""

import pytest
import torch
from support import (
    assert_same,
    backward,
    clones,
    make_gradients,
    make_parameters,
    master_of,
    snapshot,
    train,
)


class Rprop2(torch.optim.Optimizer):
    """A user's class: sign descent with a size per element, and state that is no tensor."""

    def __init__(self, params, lr=1e-2, *, growth=1.2):
        if growth <= 1:
            raise ValueError(f"growth {growth}")
        super().__init__(params, {"lr": lr, "growth": growth})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(size=torch.full_like(p, group["lr"]), calls=0)
                    state["last"] = torch.zeros_like(p)
                same = p.grad.sign() == state["last"]
                state["size"].mul_(torch.where(same, group["growth"], 1 / group["growth"]))
                state["last"] = p.grad.sign()
                state["calls"] += 1
                p.sub_(state["size"] * state["last"])


class Decayed(torch.optim.AdamW):
    """A subclass of a class with a native rule: may compute something else."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(0.5)


class OwnAdagrad(torch.optim.Adagrad):
    """The same, but not torch's class itself: its state exists from construction on."""


CLASSES = {
    "adagrad": (OwnAdagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "adadelta": (torch.optim.Adadelta, {"lr": 0.5, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamax": (torch.optim.Adamax, {"lr": 1e-2}),
    "user": (Rprop2, {"growth": 1.5}),
    "subclass": (Decayed, {}),
}


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("offload_gradients", [False, True])
def test_fp32_parameters_follow_the_class_itself(place, case, offload_gradients):
    cls, options = CLASSES[case]
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, cls, offload_gradients=offload_gradients, **options)
    reference = cls(twins, **options)
    train(optimizer, p, 4)
    train(reference, twins, 4)
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-5, atol=5e-6)
        for key, value in reference.state[b].items():
            torch.testing.assert_close(optimizer.state[a][key], value, check_device=False)


@pytest.mark.parametrize("case", ["adadelta", "user"])
def test_low_precision_parameters_have_fp32_masters(offloaded, case):
    cls, options = CLASSES[case]
    p = make_parameters(offloaded.device, torch.bfloat16, ((96, 64), (64, 192)))
    twins = [torch.nn.Parameter(q.detach().cpu().float()) for q in p]
    optimizer, reference = offloaded.optimizer(p, cls, **options), cls(twins, **options)
    for step in range(4):
        gradients = make_gradients(p, step)
        optimizer.zero_grad()
        backward(p, gradients)
        optimizer.step()
        for twin, gradient in zip(twins, gradients, strict=True):
            twin.grad = gradient.cpu().float()
        reference.step()
    optimizer.synchronize()
    for a, b in zip(p, twins, strict=True):
        assert_same(optimizer.state[a]["master"], b.detach())
        assert_same(a, b.detach().bfloat16())


def test_groups_change_between_steps(place):
    p, twins = make_parameters(place.device), make_parameters()

    def groups(q):
        return [{"params": q[:1], "lr": 0.1}, {"params": q[1:], "rho": 0.5}]

    optimizer = place.optimizer(groups(p), torch.optim.Adadelta)
    reference = torch.optim.Adadelta(groups(twins))
    for step in range(3):
        for stepper, parameters in ((optimizer, p), (reference, twins)):
            train(stepper, parameters, 1, first=step)
            stepper.param_groups[0]["lr"] *= 0.5
            stepper.param_groups[1]["weight_decay"] = 0.1
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("offload_gradients", [False, True])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_and_accumulation(place, offload_gradients, max_norm):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(
        p, torch.optim.ASGD, lr=0.1, max_grad_norm=max_norm, offload_gradients=offload_gradients
    )
    reference = torch.optim.ASGD(twins, lr=0.1)
    for step in range(3):
        for stepper, parameters in ((optimizer, p), (reference, twins)):
            stepper.zero_grad()
            for micro in range(2):
                backward(parameters, make_gradients(parameters, 2 * step + micro))
            if stepper is reference:
                torch.nn.utils.clip_grad_norm_(twins, max_norm)
            kept = parameters[1].grad
            stepper.step()
            assert parameters[1].grad is kept or offload_gradients
    optimizer.synchronize()
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-5, atol=1e-6)


def test_non_finite_step_is_skipped_everywhere(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p, torch.optim.NAdam)
    train(optimizer, p, 2)
    before = snapshot(optimizer, p)
    gradients = make_gradients(p, 2)
    gradients[1][0] = float("nan")
    optimizer.zero_grad()
    backward(p, gradients)
    optimizer.step()
    optimizer.synchronize()
    assert_same(snapshot(optimizer, p), before)
    assert optimizer.stats().step.skipped_steps == 1


def test_unused_parameters_keep_an_empty_state(place):
    p = make_parameters(place.device)
    before = clones(p)
    optimizer = place.optimizer(p, torch.optim.Adadelta)
    backward(p[:1], make_gradients(p[:1], 0))
    optimizer.step()
    optimizer.synchronize()
    assert list(optimizer.state) == [p[0]]
    assert_same(clones(p[1:]), before[1:])
    assert not torch.equal(p[0], before[0])


@pytest.mark.parametrize("case", ["adagrad", "nadam", "user"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_is_exact(place, case, dtype):
    cls, options = CLASSES[case]
    p = make_parameters(place.device, dtype)
    optimizer = place.optimizer(p, cls, **options)
    train(optimizer, p, 3)
    q = [torch.nn.Parameter(v) for v in clones(p)]
    resumed = place.optimizer(q, cls, **options)
    resumed.load_state_dict(optimizer.state_dict(clone=True))
    train(optimizer, p, 5, first=3)
    train(resumed, q, 5, first=3)
    assert_same(snapshot(resumed, q), snapshot(optimizer, p))


def test_state_dict_goes_to_the_plain_class_and_back(place):
    p, q = make_parameters(place.device), make_parameters()
    optimizer, plain = place.optimizer(p, torch.optim.NAdam), torch.optim.NAdam(q)
    train(optimizer, p, 2)
    plain.load_state_dict(optimizer.state_dict(clone=True))
    with torch.no_grad():
        for a, b in zip(p, q, strict=True):
            b.copy_(a)
    train(plain, q, 2, first=2)
    again = place.optimizer(r := make_parameters(place.device), torch.optim.NAdam)
    with torch.no_grad():
        for a, b in zip(q, r, strict=True):
            b.copy_(a)
    again.load_state_dict(plain.state_dict())
    train(plain, q, 1, first=4)
    train(again, r, 1, first=4)
    for a, b in zip(q, r, strict=True):
        torch.testing.assert_close(b.detach().cpu(), a.detach(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["state"][0].update(exp_avg=torch.zeros(3)),
        lambda d: d["state"][0].pop("exp_avg_sq"),
        lambda d: d["state"][0].update(surprise=torch.zeros(96, 64)),
        lambda d: d["state"][2].update(exp_avg=torch.zeros(64, 192, dtype=torch.int32)),
        lambda d: d["param_groups"][0].update(lr=-1.0),
    ],
)
def test_malformed_state_dict_changes_nothing(place, change):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p, torch.optim.NAdam)
    train(optimizer, p, 2)
    bad = optimizer.state_dict(clone=True)
    train(optimizer, p, 1, first=2)
    change(bad)
    before = snapshot(optimizer, p)
    with pytest.raises(ValueError):
        optimizer.load_state_dict(bad)
    assert_same(snapshot(optimizer, p), before)


def test_error_in_the_class_reaches_the_caller_and_leaves_it_usable(place):
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if Failing.fails:
                raise ArithmeticError("of the user's class")
            return super().step(closure)

    p = make_parameters(place.device)
    optimizer = place.optimizer(p, Failing, lr=0.1)
    train(optimizer, p, 1)
    Failing.fails = True
    with pytest.raises(ArithmeticError, match="of the user's class"):
        train(optimizer, p, 1)
    Failing.fails = False
    before = clones(p)
    train(optimizer, p, 1)
    assert not torch.equal(before[0], p[0])


def test_class_that_refuses_a_parameter_is_heard_at_construction(place):
    p = make_parameters(place.device)
    with pytest.raises(ValueError, match="2D"):
        place.optimizer(p, torch.optim.Muon)
    optimizer = place.optimizer([p[0], p[2]], torch.optim.Muon)
    train(optimizer, [p[0], p[2]], 2)


def test_master_of_a_generic_parameter_is_its_weight_for_fp32(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p, torch.optim.Adadelta)
    train(optimizer, p, 2)
    for q in p:
        assert_same(master_of(optimizer, q), q.detach().cpu())
