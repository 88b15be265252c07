"""State dicts: torch's layout both ways, exact resume, refusal of malformed ones, hooks."""

import copy
import inspect
import warnings

import outboard
import pytest
import torch
from support import (
    SIMULATED,
    assert_same,
    clones,
    make_parameters,
    master_of,
    snapshot,
    train,
)

CLASSES = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "amsgrad": True}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "plain_sgd": (torch.optim.SGD, {"lr": 0.1}),
    "lion": (outboard.Lion, {"lr": 1e-2}),
    "adagrad": (
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.5, "centered": True}),
    "ademamix": (outboard.AdEMAMix, {"lr": 1e-2, "t_alpha": 6, "t_beta3": 5}),
    "lamb": (outboard.LAMB, {"lr": 1e-2, "weight_decay": 0.1}),
    "lars": (outboard.LARS, {"lr": 1.0, "weight_decay": 0.1}),
    "adadelta": (torch.optim.Adadelta, {"lr": 0.5}),
}


def twins_of(parameters):
    return [torch.nn.Parameter(v) for v in clones(parameters)]


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(place, case, dtype, tmp_path):
    cls, options = CLASSES[case]
    p = make_parameters(place.device, dtype)
    optimizer = place.optimizer(p, cls, chunk_elements=4096, **options)
    train(optimizer, p, 3)
    optimizer.save(tmp_path / "state.pt")
    q = twins_of(p)
    resumed = place.optimizer(q, cls, **options)
    resumed.load(tmp_path / "state.pt")
    train(optimizer, p, 5, first=3)
    train(resumed, q, 5, first=3)
    assert_same(snapshot(resumed, q), snapshot(optimizer, p))


@pytest.mark.parametrize(
    "options",
    [{"state_format": "bf16"}, {"master": "none"}, {"master": "fp32"}, {"master": "split8"}],
    ids=str,
)
def test_other_formats_resume_exactly(place, options):
    p = make_parameters(place.device, torch.bfloat16)
    optimizer = place.optimizer(p, seed=5, **options)
    train(optimizer, p, 3)
    q = twins_of(p)
    resumed = place.optimizer(q, seed=5, **options)
    resumed.load_state_dict(optimizer.state_dict(clone=True))
    train(optimizer, p, 3, first=3)
    train(resumed, q, 3, first=3)
    assert_same(snapshot(resumed, q), snapshot(optimizer, p))


@pytest.mark.parametrize("order", ["weights_first", "state_first"])
def test_weights_and_state_load_in_either_order(place, order):
    p = make_parameters(place.device, torch.bfloat16)
    optimizer = place.optimizer(p)
    train(optimizer, p, 3)
    q = make_parameters(place.device, torch.bfloat16, seed=9)
    resumed = place.optimizer(q)
    train(resumed, q, 1, first=7)

    def load_weights():
        with torch.no_grad():
            for a, b in zip(q, p, strict=True):
                a.copy_(b)

    if order == "weights_first":
        load_weights()
    resumed.load_state_dict(optimizer.state_dict(clone=True))
    if order == "state_first":
        load_weights()
    train(optimizer, p, 2, first=3)
    train(resumed, q, 2, first=3)
    assert_same(snapshot(resumed, q), snapshot(optimizer, p))


@pytest.mark.parametrize("case", CLASSES)
def test_torch_loads_ours_and_we_load_torchs(place, case):
    cls, options = CLASSES[case]
    has_fused = "fused" in inspect.signature(cls).parameters
    options = options | ({"fused": True} if has_fused else {})
    p, q = make_parameters(place.device), make_parameters()
    ours = place.optimizer(p, cls, **options)
    theirs = cls(q, **options)
    train(ours, p, 3)
    train(theirs, q, 3)
    assert list(ours.state_dict()["param_groups"][0]) == list(
        theirs.state_dict()["param_groups"][0]
    )

    into_torch = cls(r := make_parameters(), **options)
    into_torch.load_state_dict(ours.state_dict(clone=True))
    into_ours = place.optimizer(s := make_parameters(place.device), cls, **options)
    into_ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for a, b, c in zip(q, r, s, strict=True):
            b.copy_(a)
            c.copy_(a)
    for optimizer, parameters in ((theirs, q), (into_torch, r), (into_ours, s)):
        train(optimizer, parameters, 5, first=3)
    for a, b, c in zip(q, r, s, strict=True):
        # torch's fused kernels define every bit; its other paths have another square root.
        tolerance = {"rtol": 0, "atol": 0} if has_fused else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(b, a, **tolerance)
        torch.testing.assert_close(c.cpu(), a, **tolerance)


def test_adagrads_state_exists_before_the_first_step(place):
    p, q, r = make_parameters(place.device), make_parameters(), make_parameters(place.device)
    options = {"lr": 0.1, "initial_accumulator_value": 0.5, "fused": True}
    ours = place.optimizer(p, torch.optim.Adagrad, **options)
    train(ours, p[:1], 1)
    theirs = torch.optim.Adagrad(q, **options)
    train(theirs, q[:1], 1)
    for index, entry in theirs.state_dict()["state"].items():
        mine = ours.state_dict()["state"][index]
        assert_same({key: mine[key] for key in entry}, entry)
    assert list(ours.state) == [p[0]]
    again = place.optimizer(r, torch.optim.Adagrad, **options)
    again.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(clone=True))
    with torch.no_grad():
        r[0].copy_(q[0])
    train(theirs, q, 2, first=1)
    train(again, r, 2, first=1)
    assert_same(clones(r), clones(q))


def test_layout_is_torchs_plus_one_entry(place):
    p = make_parameters(place.device, torch.bfloat16)
    optimizer = place.optimizer(p)
    assert optimizer.state_dict()["state"] == {}
    train(optimizer, p, 2)
    result = optimizer.state_dict()
    assert list(result) == ["state", "param_groups", "outboard"]
    entry = result["state"][0]
    assert list(entry) == ["step", "exp_avg", "exp_avg_sq", "master"]
    assert entry["step"].dtype is torch.float32 and entry["step"].shape == ()
    assert entry["exp_avg"].dtype is torch.float32 and entry["master"].dtype is torch.int16
    assert result["outboard"]["seed"] == 0


def test_masters_that_went_through_torch_are_not_believed(place):
    p = make_parameters(place.device, torch.float16)
    optimizer = place.optimizer(p, torch.optim.SGD, lr=0.125, momentum=0.5)
    train(optimizer, p, 2)
    through = torch.optim.SGD(twins_of(p), lr=0.125, momentum=0.5)
    through.load_state_dict(optimizer.state_dict(clone=True))
    with torch.no_grad():
        for q in p:
            q.fill_(3.0)  # what training elsewhere would do
    optimizer.load_state_dict(through.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, p, 1, first=2)
    assert all((q == 3.0).all() for q in p)


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_moments_of_other_float_types_are_taken(place, source):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    train(optimizer, p, 1)
    saved = optimizer.state_dict(clone=True)
    for entry in saved["state"].values():
        entry["exp_avg"] = entry["exp_avg"].to(source)
    optimizer.load_state_dict(saved)
    assert optimizer.state[p[0]]["exp_avg"].dtype is torch.float32
    assert_same(optimizer.state[p[0]]["exp_avg"].cpu(), saved["state"][0]["exp_avg"].float().cpu())


def test_formats_convert_on_load(place):
    p = make_parameters(place.device, torch.bfloat16)
    split = place.optimizer(p)
    train(split, p, 2)
    for master, state_format in (("fp32", "fp32"), ("split", "bf16")):
        other = place.optimizer(q := twins_of(p), master=master, state_format=state_format)
        other.load_state_dict(split.state_dict(clone=True))
        back = place.optimizer(r := twins_of(p))
        back.load_state_dict(other.state_dict(clone=True))
        assert_same(back.state[r[0]]["master"], split.state[p[0]]["master"])
        wanted = split.state[p[0]]["exp_avg"]
        if state_format == "bf16":
            wanted = wanted.bfloat16().float()
        assert_same(back.state[r[0]]["exp_avg"], wanted)
        train(other, q, 1)


@pytest.mark.parametrize("master", ["split", "fp32"])
def test_split8_converts_to_and_from_other_masters(place, master):
    p = make_parameters(place.device, torch.bfloat16)
    wide = place.optimizer(p, lr=1e-2, master=master)
    train(wide, p, 2)
    narrow = place.optimizer(q := twins_of(p), master="split8")
    narrow.load_state_dict(wide.state_dict(clone=True))
    back = place.optimizer(r := twins_of(p), master=master)
    back.load_state_dict(narrow.state_dict(clone=True))
    for a, b, c in zip(p, q, r, strict=True):
        assert narrow.state[b]["master"].dtype is torch.int8
        held = master_of(narrow, b)
        # The nearest that fits beside the weight as it is.
        error = (held - master_of(wide, a)).abs() / held.abs()
        assert error.max() < 2.0**-15 and (error > 2.0**-16).float().mean() < 0.02
        assert_same(master_of(back, c), held)
    train(narrow, q, 1, first=2)


@pytest.mark.parametrize(("master", "bound"), [("split", 2.0**-23), ("split8", 2.0**-15)])
def test_ties_of_fp32_masters_stay_beside_their_weights(place, master, bound):
    # Half way between two bf16 numbers, of which the even one is below or above.
    ties = torch.tensor([1.00390625, 1.01171875, -1.00390625, -1.01171875]).repeat(2048)
    p = torch.nn.Parameter(ties.bfloat16().to(place.device))
    optimizer = place.optimizer([p], torch.optim.SGD, lr=0.0, momentum=0.5, master="fp32")
    train(optimizer, [p], 1)
    saved = optimizer.state_dict(clone=True)
    saved["state"][0]["master"] = ties
    loaded = place.optimizer([p], torch.optim.SGD, lr=0.0, momentum=0.5, master=master)
    loaded.load_state_dict(saved)
    assert (master_of(loaded, p) - ties).abs().max() <= bound


def test_load_keeps_memory_and_views(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    train(optimizer, p, 1)
    saved, view = optimizer.state_dict(clone=True), optimizer.state[p[0]]["exp_avg"]
    held = optimizer.stats().memory
    train(optimizer, p, 2, first=1)
    optimizer.load_state_dict(saved)
    assert_same(view, saved["state"][0]["exp_avg"])
    assert optimizer.stats().memory == held


def test_parameter_without_state_is_reset_by_load(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    empty = optimizer.state_dict(clone=True)
    train(optimizer, p, 2)
    optimizer.load_state_dict(empty)
    assert len(optimizer.state) == 0
    train(optimizer, p, 1)
    assert float(optimizer.state[p[0]]["step"]) == 1


def test_clone_is_a_snapshot_and_the_default_an_alias(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    train(optimizer, p, 1)
    alias, snap = optimizer.state_dict(), optimizer.state_dict(clone=True)
    before = snap["state"][0]["exp_avg"].clone()
    train(optimizer, p, 1, first=1)
    assert_same(snap["state"][0]["exp_avg"], before)
    assert not torch.equal(alias["state"][0]["exp_avg"], before)


def test_state_dict_hooks_fire_and_their_results_are_used(place):
    optimizer = place.optimizer(make_parameters(place.device))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, d: {**d, "extra": list(d)})
    optimizer.register_load_state_dict_pre_hook(lambda o, d: seen.append("load") or None)
    optimizer.register_load_state_dict_pre_hook(
        lambda o, d: d["param_groups"][0].update(lr=7.0), prepend=True
    )
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["extra"] == ["state", "param_groups", "outboard"]
    optimizer.load_state_dict(saved)
    assert seen == ["pre", "load", 7.0]


def test_another_seed_is_warned_about():
    saved = SIMULATED.optimizer(make_parameters(), seed=3).state_dict()
    with pytest.warns(UserWarning, match="seed=3"):
        SIMULATED.optimizer(make_parameters()).load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SIMULATED.optimizer(make_parameters(), seed=3).load_state_dict(saved)


def test_state_of_a_tensor_on_another_device_is_copied_back(offloaded):
    p = make_parameters(offloaded.device)
    optimizer = offloaded.optimizer(p)
    train(optimizer, p, 2)
    moved = optimizer.state_dict(clone=True)
    for entry in moved["state"].values():
        for key, value in entry.items():
            entry[key] = value.to(offloaded.device)
    before = snapshot(optimizer, p)
    optimizer.load_state_dict(moved)
    assert_same(snapshot(optimizer, p), before)
    assert optimizer.state[p[0]]["exp_avg"].device.type == "cpu"


def test_distributed_checkpoint_state_dict_round_trip(place):
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = torch.nn.Linear(64, 96).to(place.device)
    optimizer = place.optimizer(model.named_parameters())
    p = list(model.parameters())
    train(optimizer, p, 2)
    before = snapshot(optimizer, p)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    train(optimizer, p, 1, first=2)
    set_optimizer_state_dict(model, optimizer, saved)
    state = optimizer.state_dict(clone=True)["state"]
    assert_same(state[0]["exp_avg"], before[1][0]["exp_avg"])
    assert float(state[0]["step"]) == 2
