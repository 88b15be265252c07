"""Deep copies, pickles, and the `state` attribute: what is live and what is separate."""

import copy
import gc
import pickle
import weakref

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


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Adadelta])
def test_copies_step_independently_and_equally(place, how, steps, cls):
    p = make_parameters(place.device, torch.bfloat16)
    optimizer = place.optimizer(p, cls, lr=1e-2)
    train(optimizer, p, steps)
    both = (p, optimizer)
    q, twin = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    before = snapshot(optimizer, p)
    train(twin, q, 2, first=steps)
    assert_same(snapshot(optimizer, p), before)
    train(optimizer, p, 2, first=steps)
    assert_same(snapshot(optimizer, p), snapshot(twin, q))


def test_shallow_copy_is_refused():
    with pytest.raises(TypeError, match="deepcopy"):
        copy.copy(SIMULATED.optimizer(make_parameters()))


def test_state_is_live_and_empty_before_a_gradient(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    backward(p[:1], make_gradients(p[:1], 0))
    optimizer.step()
    assert list(optimizer.state) == [p[0]]
    moment, step = optimizer.state[p[0]]["exp_avg"], float(optimizer.state[p[0]]["step"])
    old = moment.clone()
    train(optimizer, p, 1)
    assert not torch.equal(moment, old)
    assert (step, float(optimizer.state[p[0]]["step"])) == (1.0, 2.0)
    moment.zero_()
    assert (optimizer.state_dict()["state"][0]["exp_avg"] == 0).all()


def test_assigning_an_empty_state_resets_it(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    train(optimizer, p, 2)
    optimizer.state = {}
    assert len(optimizer.state) == 0
    q = [torch.nn.Parameter(v) for v in clones(p)]
    fresh = place.optimizer(q)
    train(optimizer, p, 2)
    train(fresh, q, 2)
    assert_same(snapshot(optimizer, p), snapshot(fresh, q))


def test_views_outlive_the_optimizer(place):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    train(optimizer, p, 1)
    moment = optimizer.state[p[0]]["exp_avg"]
    before = moment.clone()
    dead = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert dead() is None
    assert_same(moment, before)
    backward(p, make_gradients(p, 1))  # the hooks are gone, or harmless
