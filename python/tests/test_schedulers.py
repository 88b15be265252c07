"""Every learning-rate scheduler of torch, beside the plain torch optimizer."""

import warnings

import pytest
import torch
from support import SIMULATED, assert_same, clones, make_parameters, train
from torch.optim import lr_scheduler as lrs

SCHEDULERS = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lrs.StepLR(o, 2),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 1e-3, 1e-1, 2),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 1e-1, total_steps=8),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, total_iters=2), lrs.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler(
        [lrs.ConstantLR(o, 0.5, 2), lrs.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_scheduled_training_equals_torchs(name, cls, kind):
    p, twins = make_parameters(), make_parameters()
    options = {"momentum": 0.9} if cls is torch.optim.SGD else {}
    optimizer = SIMULATED.optimizer(p, cls, lr=kind(0.05), **options)
    reference = cls(twins, lr=0.05, fused=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = SCHEDULERS[name](optimizer), SCHEDULERS[name](reference)
        for step in range(6):
            train(optimizer, p, 1, first=step)
            train(reference, twins, 1, first=step)
            for scheduler in (ours, theirs):
                metric = (1.0,) if name == "ReduceLROnPlateau" else ()
                scheduler.step(*metric)
            mine, plain = optimizer.param_groups[0], reference.param_groups[0]
            assert float(mine["lr"]) == pytest.approx(plain["lr"], rel=1e-6)
            for key in ("betas", "momentum"):
                assert mine.get(key) == plain.get(key)
    assert isinstance(optimizer.param_groups[0]["lr"], float if kind is float else torch.Tensor)
    if kind is float:
        assert_same(clones(p), clones(twins))
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_scheduler_and_optimizer_resume_together(tmp_path):
    p = make_parameters()
    optimizer = SIMULATED.optimizer(p, lr=0.1)
    scheduler = lrs.CosineAnnealingLR(optimizer, 10)
    for step in range(3):
        train(optimizer, p, 1, first=step)
        scheduler.step()
    q = [torch.nn.Parameter(v) for v in clones(p)]
    resumed = SIMULATED.optimizer(q, lr=0.1)
    again = lrs.CosineAnnealingLR(resumed, 10)
    again.load_state_dict(scheduler.state_dict())
    resumed.load_state_dict(optimizer.state_dict(clone=True))
    for step in range(3, 6):
        train(optimizer, p, 1, first=step)
        train(resumed, q, 1, first=step)
        scheduler.step()
        again.step()
        assert optimizer.param_groups[0]["lr"] == resumed.param_groups[0]["lr"]
    assert_same(clones(p), clones(q))
