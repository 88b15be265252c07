"""The native rules against torch.optim: every dtype, every place, bit by bit where torch's fused
CPU kernels define the bits."""

import inspect

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
    master_of,
    train,
)

CASES = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2}),
    "adamw_decay": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.3, "betas": (0.8, 0.95)}),
    "adamw_amsgrad": (torch.optim.AdamW, {"lr": 1e-2, "amsgrad": True}),
    "adamw_maximize": (torch.optim.AdamW, {"lr": 1e-2, "maximize": True, "eps": 1e-6}),
    "adam": (torch.optim.Adam, {"lr": 1e-2}),
    "adam_decay": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.3, "amsgrad": True}),
    "adam_decoupled": (
        torch.optim.Adam,
        {"lr": 1e-2, "weight_decay": 0.3, "decoupled_weight_decay": True},
    ),
    "sgd": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "sgd_momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd_dampening": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "sgd_nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.5}),
    "adagrad_start": (
        torch.optim.Adagrad,
        {"lr": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.3, "maximize": True},
    ),
    "sgd_maximize": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "maximize": True}),
}
# Classes without a fused kernel: equal up to rounding, that of torch's square root included.
CLOSE_CASES = {
    "lion": (outboard.Lion, {"lr": 1e-2}),
    "lion_decay": (
        outboard.Lion,
        {"lr": 1e-2, "weight_decay": 0.3, "betas": (0.5, 0.7), "maximize": True},
    ),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}),
    "rmsprop_decay": (torch.optim.RMSprop, {"lr": 1e-2, "weight_decay": 0.3, "alpha": 0.9}),
    "rmsprop_momentum": (torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.9, "maximize": True}),
    "rmsprop_centered": (torch.optim.RMSprop, {"lr": 1e-2, "centered": True, "momentum": 0.5}),
    "ademamix": (outboard.AdEMAMix, {"lr": 1e-2, "weight_decay": 0.3}),
    "ademamix_warm": (
        outboard.AdEMAMix,
        {"lr": 1e-2, "t_alpha": 6, "t_beta3": 3, "alpha": 2.0, "maximize": True},
    ),
    "ademamix_from_zero": (outboard.AdEMAMix, {"lr": 1e-2, "t_beta3": 6, "betas": (0, 0.9, 0.99)}),
    "lamb": (outboard.LAMB, {"lr": 1e-2, "weight_decay": 0.3}),
    "lamb_clipped": (outboard.LAMB, {"lr": 1e-2, "weight_decay": 0.3, "max_unorm": 0.1}),
    "lars": (outboard.LARS, {"lr": 1.0, "weight_decay": 0.3, "maximize": True}),
    "lars_nesterov": (outboard.LARS, {"lr": 1.0, "nesterov": True, "trust_coefficient": 0.01}),
    "lars_plain": (outboard.LARS, {"lr": 1.0, "momentum": 0.0, "eps": 1.0}),
    "lars_clipped": (
        outboard.LARS,
        {"lr": 0.1, "weight_decay": 0.3, "max_unorm": 0.02, "dampening": 0.5},
    ),
}


def reference_run(cls, options, parameters, gradients_of, steps):
    """Torch's fused CPU kernel on fp32 copies of the parameters."""
    copies = [torch.nn.Parameter(p.detach().cpu().float().clone()) for p in parameters]
    fused = {"fused": True} if "fused" in inspect.signature(cls).parameters else {}
    optimizer = cls(copies, **options, **fused)
    for step in range(steps):
        for copy, gradient in zip(copies, gradients_of(step), strict=True):
            copy.grad = gradient.cpu().float()
        optimizer.step()
    return copies, optimizer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masters_and_moments_have_the_bits_of_torchs_fused_kernel(place, case, dtype):
    cls, options = CASES[case]
    parameters = make_parameters(place.device, dtype)
    expected, reference = reference_run(
        cls, options, parameters, lambda step: make_gradients(parameters, step), 4
    )
    optimizer = place.optimizer(parameters, cls, chunk_elements=4096, **options)
    train(optimizer, parameters, 4)
    for parameter, copy in zip(parameters, expected, strict=True):
        assert_same(master_of(optimizer, parameter), copy)
        for key, value in reference.state[copy].items():
            assert_same(optimizer.state[parameter][key], value)


@pytest.mark.parametrize("case", CLOSE_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_rules_follow_their_reference(place, case, dtype):
    cls, options = CLOSE_CASES[case]
    parameters = make_parameters(place.device, dtype)
    expected, reference = reference_run(
        cls, options, parameters, lambda step: make_gradients(parameters, step), 4
    )
    optimizer = place.optimizer(parameters, cls, **options)
    train(optimizer, parameters, 4)
    for parameter, copy in zip(parameters, expected, strict=True):
        torch.testing.assert_close(
            master_of(optimizer, parameter), copy.detach(), rtol=1e-6, atol=5e-6
        )
        for key, value in reference.state[copy].items():
            actual = optimizer.state[parameter][key].cpu()
            torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weight_is_the_rounded_master(place, dtype):
    parameters = make_parameters(place.device, dtype)
    optimizer = place.optimizer(parameters, lr=1e-2)
    train(optimizer, parameters, 3)
    for parameter in parameters:
        assert_same(parameter, master_of(optimizer, parameter).to(dtype))


def test_small_updates_survive_in_the_split_master(place):
    parameter = torch.nn.Parameter(torch.ones(8192, dtype=torch.bfloat16, device=place.device))
    optimizer = place.optimizer([parameter], torch.optim.SGD, lr=2.0**-12)
    for _ in range(64):
        optimizer.zero_grad()
        backward([parameter], [torch.ones_like(parameter)])
        optimizer.step()
    optimizer.synchronize()
    # Each update alone is an eighth of the weight's last place.
    assert (parameter == 1 - 64 * 2.0**-12).all()


@pytest.mark.parametrize("master", ["stochastic", "none"])
def test_stochastic_rounding_moves_the_mean_and_is_repeatable(place, master):
    results = []
    for seed in (1, 1, 2):
        parameter = torch.nn.Parameter(torch.ones(65536, dtype=torch.bfloat16, device=place.device))
        optimizer = place.optimizer(
            [parameter], torch.optim.SGD, lr=2.0**-12, master=master, seed=seed
        )
        for _ in range(16):
            optimizer.zero_grad()
            backward([parameter], [torch.ones_like(parameter)])
            optimizer.step()
        optimizer.synchronize()
        results.append(parameter.detach().float().cpu())
        assert "master" not in optimizer.state[parameter]
    assert_same(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    # 16 steps of 2^-12; the mean's standard deviation is below 2^-14 / 16.
    assert abs(results[0].mean().item() - (1 - 2.0**-8)) < 2.0**-14


def test_small_updates_move_the_mean_of_split8_masters_and_are_repeatable(place):
    results = []
    for seed in (1, 1, 2):
        parameter = torch.nn.Parameter(torch.ones(65536, dtype=torch.bfloat16, device=place.device))
        optimizer = place.optimizer(
            [parameter], torch.optim.SGD, lr=2.0**-21, master="split8", seed=seed
        )
        for _ in range(64):
            optimizer.zero_grad()
            backward([parameter], [torch.ones_like(parameter)])
            optimizer.step()
        optimizer.synchronize()
        results.append(master_of(optimizer, parameter))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    # Each step is a 32nd of what 24 bits resolve, 2^-16; the mean's standard deviation is below
    # 2^-16 * sqrt(2) / 256.
    assert abs(results[0].double().mean().item() - (1 - 2.0**-15)) < 2.0**-21


def test_split8_stays_close_to_the_exact_master(place):
    parameters = make_parameters(place.device, torch.bfloat16)
    twins = make_parameters(place.device, torch.bfloat16)
    narrow = place.optimizer(parameters, lr=1e-2, master="split8")
    exact = place.optimizer(twins, lr=1e-2)
    train(narrow, parameters, 5)
    train(exact, twins, 5)
    for a, b in zip(parameters, twins, strict=True):
        assert narrow.state[a]["master"].dtype is torch.int8
        # At most 2^-15 a step.
        torch.testing.assert_close(
            master_of(narrow, a), master_of(exact, b), rtol=5 * 2.0**-15, atol=1e-6
        )


def test_split8_is_for_bfloat16():
    p = make_parameters(dtype=torch.float16)
    with pytest.raises(ValueError, match=r'master "split8" of the float16 parameter'):
        SIMULATED.optimizer(p, master="split8")
    with pytest.raises(ValueError, match=r'master "split8" of .* needs a native rule'):
        SIMULATED.optimizer(
            make_parameters(dtype=torch.bfloat16), torch.optim.Adadelta, master="split8"
        )


def test_fp32_master_is_an_option_for_bf16(place):
    parameters = make_parameters(place.device, torch.bfloat16)
    twins = make_parameters(place.device, torch.bfloat16)
    split = place.optimizer(parameters, lr=1e-2)
    full = place.optimizer(twins, lr=1e-2, master="fp32")
    train(split, parameters, 3)
    train(full, twins, 3)
    for a, b in zip(parameters, twins, strict=True):
        assert split.state[a]["master"].dtype is torch.int16
        assert full.state[b]["master"].dtype is torch.float32
        assert_same(master_of(split, a), master_of(full, b))


def test_bf16_state_is_close_and_half_as_large(place):
    parameters, twins = make_parameters(place.device), make_parameters(place.device)
    small = place.optimizer(parameters, lr=1e-2, state_format="bf16")
    exact = place.optimizer(twins, lr=1e-2)
    train(small, parameters, 5)
    train(exact, twins, 5)
    for a, b in zip(parameters, twins, strict=True):
        assert small.state[a]["exp_avg"].dtype is torch.bfloat16
        assert small.state[a]["exp_avg"].shape == a.shape
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    small_bytes, exact_bytes = small.stats().memory, exact.stats().memory
    assert 2 * small_bytes.host_state == pytest.approx(exact_bytes.host_state, rel=0.01)


def test_hyper_parameters_may_change_between_steps(place):
    parameters, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(parameters, lr=1e-2)
    reference = torch.optim.AdamW(twins, lr=1e-2, fused=True)
    changes = [
        {"lr": 3e-3},
        {"betas": (0.7, 0.9)},
        {"weight_decay": 0.5},
        {"maximize": True},
        {"eps": 1e-3},
        {"lr": 0.0},
    ]
    for step, change in enumerate(changes):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group.update(change)
        train(optimizer, parameters, 1, first=step)
        train(reference, twins, 1, first=step)
        assert_same(clones(parameters), clones(twins))


def test_momentum_and_amsgrad_can_be_switched_on_later(place):
    for cls, change in (
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    ):
        parameters = make_parameters(place.device)
        optimizer = place.optimizer(parameters, cls, lr=1e-2)
        train(optimizer, parameters, 2)
        optimizer.param_groups[0].update(change)
        train(optimizer, parameters, 2, first=2)
        keys = ["max_exp_avg_sq"] if cls is torch.optim.AdamW else ["momentum_buffer"]
        keys += ["grad_avg"] if cls is torch.optim.RMSprop else []
        for key in keys:
            assert optimizer.state[parameters[0]][key].abs().sum() > 0


def test_groups_have_their_own_values(place):
    parameters, twins = make_parameters(place.device), make_parameters()

    def groups(p):
        return [
            {"params": [p[0]], "lr": 1e-1, "weight_decay": 0.0},
            {"params": p[1:], "betas": (0.5, 0.6), "maximize": True},
        ]

    optimizer = place.optimizer(groups(parameters), lr=1e-3)
    reference = torch.optim.AdamW(groups(twins), lr=1e-3, fused=True)
    train(optimizer, parameters, 3)
    train(reference, twins, 3)
    assert_same(clones(parameters), clones(twins))


def test_mixed_dtypes_in_one_optimizer(place):
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    parameters = [
        make_parameters(place.device, dtype, (shape,))[0]
        for dtype, shape in zip(dtypes, ((96, 64), (80, 64), (112, 64)), strict=True)
    ]
    expected, _ = reference_run(
        torch.optim.AdamW, {}, parameters, lambda step: make_gradients(parameters, step), 3
    )
    optimizer = place.optimizer(parameters)
    train(optimizer, parameters, 3)
    assert_same([master_of(optimizer, p) for p in parameters], clones(expected))
