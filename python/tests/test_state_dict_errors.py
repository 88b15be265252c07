"""Malformed state dicts: refused by name, and nothing is changed."""

import copy

import pytest
import torch
from support import SIMULATED, assert_same, make_parameters, snapshot, train


def drop(entry, key):
    del entry[key]


MALFORMED = {
    "missing group": lambda d: d["param_groups"].clear(),
    "extra group": lambda d: d["param_groups"].append({"params": []}),
    "fewer parameters": lambda d: d["param_groups"][0]["params"].pop(),
    "repeated parameter": lambda d: d["param_groups"][0].update(params=[0, 0, 1]),
    "unnumbered parameter": lambda d: d["param_groups"][0].update(params=[[0], 1, 2]),
    "no state": lambda d: drop(d, "state"),
    "no list": lambda d: drop(d["outboard"], "format_version"),
    "no groups": lambda d: drop(d, "param_groups"),
    "groups of wrong type": lambda d: d.update(param_groups={"params": [0, 1, 2]}),
    "state of wrong type": lambda d: d.update(state=[1, 2]),
    "missing state": lambda d: drop(d["state"], 1),
    "state of nobody": lambda d: d["state"].update({17: d["state"][0]}),
    "missing moment": lambda d: drop(d["state"][0], "exp_avg_sq"),
    "missing step": lambda d: drop(d["state"][0], "step"),
    "unknown entry": lambda d: d["state"][0].update(surprise=torch.zeros(96, 64)),
    "wrong shape": lambda d: d["state"][0].update(exp_avg=torch.zeros(64, 96)),
    "short": lambda d: d["state"][0].update(exp_avg=torch.zeros(96, 63)),
    "wrong type": lambda d: d["state"][0].update(exp_avg=torch.zeros(96, 64, dtype=torch.int64)),
    "complex": lambda d: d["state"][0].update(exp_avg=torch.zeros(96, 64, dtype=torch.cfloat)),
    "no tensor": lambda d: d["state"][0].update(exp_avg="zeros"),
    "wrong master shape": lambda d: d["state"][0].update(master=torch.zeros(3, dtype=torch.int16)),
    "wrong master type": lambda d: d["state"][0].update(master=torch.zeros(96, 64).bool()),
    "wrong split8 shape": lambda d: d["state"][0].update(master=torch.zeros(3, dtype=torch.int8)),
    "unsigned master": lambda d: d["state"][0].update(master=torch.zeros(96, 64).byte()),
    "negative step": lambda d: d["state"][0].update(step=torch.tensor(-1.0)),
    "fractional step": lambda d: d["state"][0].update(step=torch.tensor(1.5)),
    "step not a number": lambda d: d["state"][0].update(step=torch.tensor(float("nan"))),
    "huge step": lambda d: d["state"][0].update(step=torch.tensor(1e30)),
    "steps": lambda d: d["state"][0].update(step=torch.ones(2)),
    "bad rate": lambda d: d["param_groups"][0].update(lr=-1.0),
    "bad betas": lambda d: d["param_groups"][0].update(betas=(0.9, 1.5)),
    "rate not a number": lambda d: d["param_groups"][0].update(lr=float("nan")),
    "another class": lambda d: d["param_groups"][0].update(decoupled_weight_decay=False),
    "future version": lambda d: d["outboard"].update(format_version=99),
    "bad version": lambda d: d["outboard"].update(format_version="1"),
    "bad list": lambda d: d["outboard"].update(stepped=[12]),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("index", [0, 2])
def test_malformed_state_dict_is_refused_and_changes_nothing(place, case, index):
    p = make_parameters(place.device, torch.bfloat16, ((96, 64),) * 3)
    optimizer = place.optimizer(p)
    train(optimizer, p, 2)
    bad = optimizer.state_dict(clone=True)
    train(optimizer, p, 1, first=2)
    # The same defect in the last entry: the first ones must not have been loaded by then.
    bad["state"][0], bad["state"][index] = bad["state"][index], bad["state"][0]
    MALFORMED[case](bad)
    if {0, index} <= set(bad.get("state", ())):
        bad["state"][0], bad["state"][index] = bad["state"][index], bad["state"][0]
    before, groups = snapshot(optimizer, p), copy.copy(optimizer.param_groups[0])
    with pytest.raises(ValueError):
        optimizer.load_state_dict(bad)
    assert_same(snapshot(optimizer, p), before)
    assert optimizer.param_groups[0] == groups
    train(optimizer, p, 1, first=3)


def test_refusal_names_the_parameter_and_the_entry():
    model = torch.nn.Linear(64, 96)
    optimizer = SIMULATED.optimizer(model.named_parameters())
    train(optimizer, list(model.parameters()), 1)
    bad = optimizer.state_dict(clone=True)
    bad["state"][1]["exp_avg"] = torch.zeros(95)
    with pytest.raises(ValueError, match=r"exp_avg.*bias.*\(95,\).*\(96,\)"):
        optimizer.load_state_dict(bad)
