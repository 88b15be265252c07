"""Schedules end to end: whole models, trained on late weights, with the bits of at_step.

Weights in flight hold NaN here (poison_in_flight), copies are delayed at random: a read that
nothing waited for, or an update that came too early, shows in the losses or in the weights.
"""

import copy
import gc
import logging
import warnings
from contextlib import nullcontext

import pytest
import torch
from attach_support import TOKENS, VECTORS, ZOO, Failing, Flow, Gpt
from support import CUDA, SIMULATED, assert_same, clones, train

SCHEDULES = ("next_forward", "in_backward")
STEPS = 5


def optimizer_for(model, place=SIMULATED, **options):
    options = {"lr": 1e-2, "min_offload_elements": 1, "chunk_elements": 256, **options}
    return place.optimizer(model.named_parameters(), **options)


class Run:
    """A model and its optimizer; attached under a schedule, or as it is."""

    def __init__(self, model, schedule=None, place=SIMULATED, **options):
        self.model = model.to(place.device)
        if hasattr(model, "make"):
            model.make()  # views are of the weights that were
        if schedule is not None:
            options |= {"schedule": schedule, "poison_in_flight": True}
        self.optimizer = optimizer_for(model, place, **options)
        if schedule is not None:
            self.optimizer.attach(model)
        self.run = self.model
        self.device = place.device
        self.losses = []

    def step(self, x, *args, micro_steps=1, scale=1.0):
        self.optimizer.zero_grad()
        for micro_step in range(micro_steps):
            loss = self.run(x.to(self.device), *args).float().pow(2).mean() * scale
            (loss / (micro_step + 1)).backward()
            self.losses.append(loss.detach())
        self.optimizer.step()

    def train(self, x, steps=STEPS, **options):
        for _ in range(steps):
            self.step(x, **options)
        self.optimizer.synchronize()
        return self


def assert_equal_runs(run, reference):
    assert_same(run.losses, reference.losses)
    run.optimizer.synchronize()
    assert_same(list(run.model.parameters()), list(reference.model.parameters()))
    assert_same(run.optimizer.state_dict()["state"], reference.optimizer.state_dict()["state"])
    assert all(torch.isfinite(loss).all() for loss in run.losses)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return request.param


def pair(make, schedule, place=SIMULATED, **options):
    """The same model twice: attached, and trained at_step."""
    model = make()
    twin = copy.deepcopy(model)
    return Run(model, schedule, place, **options), Run(twin, None, place, **options)


@pytest.mark.parametrize("name", ZOO, ids=lambda name: name.replace(" ", "-"))
def test_every_kind_of_model(name, schedule):
    make, x = ZOO[name]
    run, reference = pair(make, schedule)
    assert_equal_runs(run.train(x), reference.train(x))


@pytest.mark.parametrize("offload_gradients", [False, True])
@pytest.mark.parametrize("max_grad_norm", [None, 1e-3, 1e6], ids=["free", "clipped", "never"])
@pytest.mark.parametrize("micro_steps", [1, 3])
def test_clipping_and_accumulation(schedule, max_grad_norm, micro_steps, offload_gradients):
    options = {"max_grad_norm": max_grad_norm, "offload_gradients": offload_gradients}
    run, reference = pair(Gpt, schedule, accumulation_steps=micro_steps, **options)
    run.train(TOKENS, micro_steps=micro_steps)
    assert_equal_runs(run, reference.train(TOKENS, micro_steps=micro_steps))


@pytest.mark.parametrize("state_format", ["fp32", "8bit", "4bit"])
def test_state_formats(schedule, state_format):
    options = {"state_format": state_format, "min_quantized_elements": 64, "max_grad_norm": 1.0}
    run, reference = pair(lambda: Gpt().bfloat16(), schedule, **options)
    assert_equal_runs(run.train(TOKENS), reference.train(TOKENS))


@pytest.mark.parametrize(
    "options",
    [
        {"placement": {"*": "host"}, "max_grad_norm": 1e-2},
        {"placement": {"*": "streamed"}, "max_grad_norm": 1e-2},
        {"offload_gradients": True, "skip_nonfinite": False},
    ],
    ids=["host", "streamed", "for good"],
)
@pytest.mark.parametrize("micro_steps", [1, 3])
def test_means_of_rows_and_columns(schedule, micro_steps, options):
    options = {"factored_second_moment": True, "accumulation_steps": micro_steps, **options}
    run, reference = pair(Gpt, schedule, **options)
    run.train(TOKENS, micro_steps=micro_steps)
    assert_equal_runs(run, reference.train(TOKENS, micro_steps=micro_steps))


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_checkpointed_layers_with_clipping(schedule, kind):
    run, reference = pair(lambda: Gpt("assigned", kind), schedule, max_grad_norm=1e-2)
    assert_equal_runs(run.train(TOKENS), reference.train(TOKENS))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("way", ["whole", "blocks"])
def test_compiled_models(schedule, way, backend):
    torch._dynamo.reset()
    run, reference = pair(Gpt, schedule)
    for each in (run, reference):
        if way == "whole":
            each.run = torch.compile(each.model, backend=backend)
        else:
            for block in each.model.blocks:
                block.compile(backend=backend)
    assert_equal_runs(run.train(TOKENS), reference.train(TOKENS))
    torch._dynamo.reset()


def test_evaluation_and_saving_between_steps(schedule):
    run, reference = pair(Gpt, schedule, max_grad_norm=1.0)
    for _ in range(STEPS):
        for each in (run, reference):
            each.step(TOKENS)
            each.model.eval()
            with torch.no_grad():
                each.losses.append(each.model(TOKENS))
            each.model.train()
            each.losses += clones(each.model.state_dict().values())
    assert_equal_runs(run, reference)


def test_forwards_that_change(schedule):
    run, reference = pair(Flow, schedule, max_grad_norm=1.0)
    for order, functional in [
        ((0, 1, 2, 3), ()),
        ((3, 2, 1, 0), ()),
        ((0, 1), (1,)),
        ((2,), ()),
        ((0, 3, 1, 2), (0, 3)),
        ((0, 1, 2, 3), ()),
    ]:
        for each in (run, reference):
            each.step(VECTORS, order, functional)
    assert_equal_runs(run, reference)


def test_learning_rate_changed_between_forward_and_step(schedule):
    """What was announced no longer holds then."""
    run, reference = pair(Gpt, schedule)
    for step in range(STEPS):
        for each in (run, reference):
            each.optimizer.zero_grad()
            loss = each.model(TOKENS).pow(2).mean()
            loss.backward()
            each.optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            each.optimizer.step()
            each.losses.append(loss.detach())
    assert_equal_runs(run, reference)


def test_parameters_added_later(schedule):
    run, reference = pair(Flow, schedule)
    for each in (run, reference):
        each.train(VECTORS, 2)
        torch.manual_seed(3)
        each.model.parts.append(torch.nn.Linear(8, 8).to(each.device))
        each.optimizer.add_param_group({"params": list(each.model.parts[4].named_parameters("4"))})
        for _ in range(4):
            each.step(VECTORS, (0, 4, 2))
    assert_equal_runs(run, reference)


def test_failed_forwards(schedule):
    run, reference = pair(Failing, schedule, max_grad_norm=1.0)
    for number in range(6):
        for each in (run, reference):
            if number % 2:
                each.model.error = ValueError
                with pytest.raises(ValueError, match="in forward"):
                    each.model(VECTORS)
                each.model.error = None
            each.step(VECTORS)
    assert_equal_runs(run, reference)


def test_two_optimizers_share_a_model(schedule):
    model = Gpt()
    twin = copy.deepcopy(model)
    found = []
    for net, attached in ((model, True), (twin, False)):
        options = {"schedule": schedule, "poison_in_flight": True} if attached else {}
        named = list(net.named_parameters())
        optimizers = [
            SIMULATED.optimizer(half, lr=1e-2, min_offload_elements=1, **options)
            for half in (named[::2], named[1::2])
        ]
        if attached:
            for optimizer in optimizers:
                optimizer.attach(net)
        losses = []
        for _ in range(STEPS):
            net.zero_grad()
            loss = net(TOKENS).pow(2).mean()
            loss.backward()
            losses.append(loss.detach())
            for optimizer in optimizers:
                optimizer.step()
        for optimizer in optimizers:
            optimizer.synchronize()
        found.append(losses + clones(net.parameters()))
    assert_same(*found)


@pytest.mark.filterwarnings("ignore:.*no model is attached")
def test_detached_and_attached_again(schedule):
    run, reference = pair(Gpt, schedule)
    for number in range(6):
        for each in (run, reference):
            each.step(TOKENS)
        if number == 2:
            run.optimizer.detach()
            run.optimizer.detach()
            assert run.optimizer.stats().schedule == "at_step"
        if number == 4:
            run.optimizer.attach(run.model)
            assert run.optimizer.stats().schedule == schedule
    assert_equal_runs(run, reference)


def test_weights_are_current_after_synchronize(schedule):
    run, reference = pair(Gpt, schedule)
    for each in (run, reference):
        each.step(TOKENS)
        each.optimizer.synchronize()
    assert_same([p.detach() for p in run.model.parameters()], list(reference.model.parameters()))


def test_optimizer_thrown_away_in_flight(schedule):
    run, reference = pair(Gpt, schedule)
    for each in (run, reference):
        each.step(TOKENS)
        each.optimizer = None
        gc.collect()
    assert_same(run.model(TOKENS), reference.model(TOKENS))


def test_auto_says_what_it_chose(caplog):
    model = Gpt()
    optimizer = optimizer_for(model)
    assert optimizer.stats().schedule == "at_step"
    with caplog.at_level(logging.INFO, logger="outboard"):
        optimizer.attach(model)
    stats = optimizer.stats()
    assert stats.schedule in SCHEDULES
    assert [r for r in caplog.records if stats.schedule in r.getMessage()]


@pytest.mark.parametrize("wanted", ["auto", "in_backward"])
def test_updates_in_backward_do_not_take_the_last_memory(monkeypatch, wanted):
    import outboard.doctor

    monkeypatch.setattr(outboard.doctor, "free_memory", lambda root: 1 << 20)
    model = torch.nn.Linear(256, 512)
    optimizer = SIMULATED.optimizer(model.parameters(), placement="streamed", schedule=wanted)
    optimizer.attach(model)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(3):
            model(torch.ones(2, 256)).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    stats = optimizer.stats()
    assert stats.schedule == "next_forward"
    assert "host memory" in stats.reason
    assert stats.step.early_updates == 0
    assert [w for w in record if "host memory" in str(w.message)] == record[:]
    assert len(record) == (wanted == "in_backward")


@pytest.mark.parametrize("placement", ["host", "streamed"])
@pytest.mark.parametrize("kind", ["unscaled in place", "unscaled and clipped", "given away"])
def test_a_gradient_scaler_changes_what_was_guessed(schedule, kind, placement):
    results = []
    for chosen in (None, schedule):
        torch.manual_seed(0)
        model = torch.nn.Linear(256, 512)
        optimizer = SIMULATED.optimizer(
            model.parameters(),
            placement=placement,
            offload_gradients=kind == "given away",
            max_grad_norm=5.0 if kind == "given away" else None,
            **({} if chosen is None else {"schedule": chosen}),
        )
        if chosen is not None:
            optimizer.attach(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        for step in range(8):
            loss = model(torch.full((2, 256), 0.1 * step)).pow(2).mean()
            scaler.scale(loss).backward()
            if step == 4 and kind != "given away":
                model.weight.grad[0, 0] = float("inf")
            if kind == "unscaled and clipped":
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        optimizer.synchronize()
        results.append([p.detach().clone() for p in model.parameters()])
    assert_same(*results)


@pytest.mark.parametrize("placement", ["host", "streamed"])
def test_accumulate_allows_any_number_of_backwards(placement):
    options = {
        "offload_gradients": True,
        "skip_nonfinite": False,
        "placement": placement,
        "min_offload_elements": 1,
    }
    results = []
    for schedule in (None, "in_backward"):
        torch.manual_seed(0)
        model = torch.nn.Linear(256, 512)
        given = {} if schedule is None else {"schedule": schedule}
        optimizer = SIMULATED.optimizer(model.parameters(), **options, **given)
        if schedule is not None:
            optimizer.attach(model)
        for backwards in (2, 2, 4, 1, 3):
            for micro_step in range(backwards):
                with optimizer.accumulate() if micro_step < backwards - 1 else nullcontext():
                    model(torch.full((2, 256), 0.1 * backwards)).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.synchronize()
        results.append([p.detach().clone() for p in model.parameters()])
        assert schedule is None or optimizer.stats().step.early_updates > 0
    assert_same(*results)


def test_schedule_without_a_model_warns_once(schedule):
    parameter = torch.nn.Parameter(torch.ones(64))
    optimizer = SIMULATED.optimizer([parameter], schedule=schedule)
    with pytest.warns(UserWarning, match="call optimizer.attach") as record:
        train(optimizer, [parameter], 3)
    assert len(record) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("max_grad_norm", [None, 1e-3, 1e6], ids=["free", "clipped", "never"])
@pytest.mark.parametrize("name", ["assigned", "reentrant", "hidden", "encoder"])
def test_on_a_gpu(name, schedule, max_grad_norm):
    make, x = ZOO[name]
    options = {"max_grad_norm": max_grad_norm, "offload_gradients": True}
    run, reference = pair(make, schedule, CUDA, **options)
    assert_equal_runs(run.train(x), reference.train(x))
