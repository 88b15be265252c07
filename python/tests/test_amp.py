"""torch.amp.GradScaler in front of the optimizer: unscaling by the scaler, by the optimizer, and
with gradients that have left the device."""

import warnings

import pytest
import torch
from support import assert_same, backward, clones, make_gradients, make_parameters, train

MODES = {
    "standard": {},
    "unchecked": {"skip_nonfinite": False},
    "fused": {"fused_amp": True},
    "offloaded": {"offload_gradients": True},
    "both": {"fused_amp": True, "offload_gradients": True},
}


def make_scaler(device, scale=1024.0, **options):
    return torch.amp.GradScaler(device, init_scale=scale, growth_interval=3, **options)


def scaled_step(scaler, optimizer, parameters, seed, scale=1.0):
    """backward, step and update of one iteration."""
    optimizer.zero_grad()
    gradients = make_gradients(parameters, seed, scale)
    losses = [(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]
    scaler.scale(sum(loss.float() for loss in losses)).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("mode", MODES)
def test_scaled_training_equals_torchs_through_growth_and_backoff(place, mode):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, lr=1e-2, **MODES[mode])
    reference = torch.optim.AdamW(twins, lr=1e-2, fused=True)
    scaler, plain = make_scaler(place.device), make_scaler("cpu")
    for step in range(12):
        # Powers of two make scaling exact; two steps overflow.
        size = float("inf") if step in (4, 5) else 1.0
        scaled_step(scaler, optimizer, p, step, size)
        scaled_step(plain, reference, twins, step, size)
        assert scaler.get_scale() == plain.get_scale()
        optimizer.synchronize()
        assert_same(clones(p), clones(twins))


@pytest.mark.parametrize("mode", MODES)
def test_skipped_step_leaves_no_trace(place, mode):
    # torch's scaler has no CUDA kernel for bfloat16 gradients.
    dtype = torch.float32 if place.device == "cuda" else torch.bfloat16
    p = make_parameters(place.device, dtype)
    optimizer = place.optimizer(p, **MODES[mode])
    scaler = make_scaler(place.device, scale=2.0**16)
    before = clones(p)
    scaled_step(scaler, optimizer, p, 0, float("nan"))
    assert scaler.get_scale() == 2.0**15
    optimizer.synchronize()
    assert_same(clones(p), before)
    assert len(optimizer.state) == 0
    if optimizer.stats().elements.get("host") and mode in ("offloaded", "both"):
        assert p[0].grad is None  # neither the gradient nor what stood in for it


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.ASGD])
def test_clipping_sees_unscaled_gradients(place, mode, cls):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, cls, lr=1e-2, max_grad_norm=1.0, **MODES[mode])
    reference = cls(twins, lr=1e-2)
    scaler = make_scaler(place.device)
    for step in range(3):
        scaled_step(scaler, optimizer, p, step)
        reference.zero_grad()
        backward(twins, make_gradients(twins, step))
        torch.nn.utils.clip_grad_norm_(twins, 1.0)
        reference.step()
    optimizer.synchronize()
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["standard", "fused"])
def test_users_own_unscale_and_clip_work(place, mode):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, torch.optim.SGD, lr=0.5, **MODES[mode])
    reference = torch.optim.SGD(twins, lr=0.5, fused=True)
    for device, parameters, stepper in ((place.device, p, optimizer), ("cpu", twins, reference)):
        scaler = make_scaler(device)
        for step in range(3):
            stepper.zero_grad()
            gradients = make_gradients(parameters, step)
            losses = [(q * g).sum() for q, g in zip(parameters, gradients, strict=True)]
            scaler.scale(sum(losses)).backward()
            scaler.unscale_(stepper)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(stepper)
            scaler.update()
    optimizer.synchronize()
    for a, b in zip(p, twins, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-6, atol=1e-6)


def test_unscale_of_gradients_that_left_is_refused(offloaded):
    p = make_parameters(offloaded.device, shapes=((96, 64),))
    optimizer = offloaded.optimizer(p, offload_gradients=True)
    before = clones(p)
    scaler = make_scaler(offloaded.device)
    scaler.scale((p[0] * p[0]).sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscale_"):
        scaler.step(optimizer)
    assert_same(clones(p), before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", range(3))
def test_overflow_of_one_gradient_alone_backs_off(place, mode, index):
    p = make_parameters(place.device)
    before = clones(p)
    optimizer, scaler = place.optimizer(p, **MODES[mode]), make_scaler(place.device)
    scales = [float("inf") if i == index else 1.0 for i in range(3)]
    losses = [(q * s).sum() for q, s in zip(p, scales, strict=True)]
    scaler.scale(sum(losses)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.synchronize()
    assert scaler.get_scale() == 512.0
    assert_same(clones(p), before)


def test_clip_method_takes_the_scale(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p, fused_amp=True)
    gradients = make_gradients(p, 0)
    backward(p, gradients, 256.0)
    norm = torch.nn.utils.get_total_norm([g.cpu() for g in gradients])
    for scale in (256.0, torch.tensor(256.0, device=place.device)):
        torch.testing.assert_close(
            optimizer.clip_grad_norm_(1.0, grad_scale=scale), norm, rtol=1e-6, atol=0
        )


def test_flag_is_off_by_default_and_follows_the_option(place):
    p = make_parameters(place.device)
    assert not place.optimizer(p)._step_supports_amp_scaling
    assert place.optimizer(p, fused_amp=True)._step_supports_amp_scaling


def test_reading_the_flag_does_not_disturb_training(offloaded):
    p, twins = make_parameters(offloaded.device), make_parameters()
    optimizer = offloaded.optimizer(p, lr=1e-2, offload_gradients=True)
    for step in range(2):
        optimizer.zero_grad()
        backward(p, make_gradients(p, step))
        assert optimizer._step_supports_amp_scaling
        optimizer.step()
    optimizer.synchronize()
    train(torch.optim.AdamW(twins, lr=1e-2, fused=True), twins, 2)
    assert_same(clones(p), clones(twins))


@pytest.mark.parametrize("mode", MODES)
def test_scaler_warns_about_nothing(place, mode):
    p = make_parameters(place.device)
    optimizer, scaler = place.optimizer(p, **MODES[mode]), make_scaler(place.device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled_step(scaler, optimizer, p, 0)


def test_disabled_scaler_is_transparent(place):
    p, twins = make_parameters(place.device), make_parameters()
    optimizer = place.optimizer(p, lr=1e-2, offload_gradients=True)
    scaler = make_scaler(place.device, enabled=False)
    for step in range(2):
        scaled_step(scaler, optimizer, p, step)
    optimizer.synchronize()
    train(torch.optim.AdamW(twins, lr=1e-2, fused=True), twins, 2)
    assert_same(clones(p), clones(twins))


@pytest.mark.parametrize("mode", MODES)
def test_fp16_network_trains_as_with_torch(place, mode):
    def run(device, make):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 64)
        ).to(device)
        inputs, wanted = torch.randn(32, 64), torch.randn(32, 64)
        optimizer, scaler, losses = make(model.parameters()), make_scaler(device), []
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast(device, torch.float16):
                output = model(inputs.to(device))
            loss = torch.nn.functional.mse_loss(output.float(), wanted.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses

    ours = run(place.device, lambda p: place.optimizer(p, lr=1e-2, **MODES[mode]))
    theirs = run(place.device, lambda p: torch.optim.AdamW(p, lr=1e-2))
    assert ours == pytest.approx(theirs, rel=1e-2)
    assert ours[-1] < 0.9 * ours[0]
