"""LowBitOptimizer with capturable=True: the bits of ordinary steps, on a simulated device and from
CUDA graphs; what changes between replays; what is refused.
"""

import copy
import pickle

import outboard
import pytest
import torch
from outboard.low_bit import NAMED_CLASSES
from support import (
    CPU,
    CUDA,
    SIMULATED,
    assert_same,
    assert_step_does_not_wait,
    backward,
    clones,
    make_gradients,
    make_parameters,
    train,
)

SHAPES = ((96, 64), (65, 65), (160,))
ON_DEVICES = pytest.mark.parametrize(
    "place", [SIMULATED, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=lambda p: p.name
)


def make(place, parameters, cls=outboard.AdamW8bit, capturable=True, **options):
    options.setdefault("min_quantized_elements", 0)
    return cls(parameters, threads=2, simulate=place.simulate, capturable=capturable, **options)


def parameters_on(place, seed=0):
    return make_parameters(place.device, torch.bfloat16, SHAPES, seed)


# ---- The same steps ------------------------------------------------------------------------------


@ON_DEVICES
@pytest.mark.parametrize("master", ["split", "stochastic"])
@pytest.mark.parametrize("name", list(NAMED_CLASSES))
def test_has_the_bits_of_ordinary_steps(place, name, master):
    p, q = parameters_on(place), parameters_on(place)
    cls = NAMED_CLASSES[name]
    capturable = make(place, p, cls, lr=1e-2, master=master)
    usual = make(place, q, cls, capturable=False, lr=1e-2, master=master)
    for optimizer, parameters in ((capturable, p), (usual, q)):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for step in range(3):
            train(optimizer, parameters, 1, first=step)
            scheduler.step()
    assert_same(clones(p), clones(q))
    assert_same(
        capturable.state_dict(clone=True, compressed=True)["state"],
        usual.state_dict(clone=True, compressed=True)["state"],
    )


@ON_DEVICES
def test_parameters_without_a_gradient_count_their_own_steps(place):
    p = parameters_on(place)
    optimizer = make(place, p)
    train(optimizer, p, 2)
    optimizer.zero_grad()
    backward(p[:1], make_gradients(p[:1], 2))
    optimizer.step()
    assert [optimizer.state[q]["step"].item() for q in p] == [3, 2, 2]


@ON_DEVICES
def test_groups_may_be_added_and_differ(place):
    p, q = parameters_on(place), parameters_on(place)
    for parameters, capturable in ((p, True), (q, False)):
        optimizer = make(place, parameters[:2], capturable=capturable)
        train(optimizer, parameters[:2], 1)
        optimizer.add_param_group({"params": parameters[2:], "lr": 0.5, "weight_decay": 0.0})
        train(optimizer, parameters, 2, first=1)
    assert_same(clones(p), clones(q))


@ON_DEVICES
def test_values_that_are_tensors_on_the_device_are_read_there(place):
    p, q = parameters_on(place), parameters_on(place)
    lr = torch.tensor(1e-2, dtype=torch.float64, device=place.device)
    betas = tuple(torch.tensor(b, dtype=torch.float64, device=place.device) for b in (0.5, 0.99))
    optimizer = make(place, p, lr=lr, betas=betas)
    betas = optimizer.param_groups[0]["betas"]
    usual = make(place, q, capturable=False, lr=1e-2, betas=(0.5, 0.99))
    for step in range(3):
        train(optimizer, p, 1, first=step)
        train(usual, q, 1, first=step)
        lr.mul_(0.5)
        usual.param_groups[0]["lr"] *= 0.5
    assert_same(clones(p), clones(q))
    usual.param_groups[0].update(lr=0.25, betas=(0.75, 0.5))
    optimizer.load_state_dict(usual.state_dict(clone=True, compressed=True))
    assert optimizer.param_groups[0]["lr"] is lr and lr.item() == 0.25
    assert [b.item() for b in betas] == [0.75, 0.5]
    assert optimizer.param_groups[0]["betas"][0] is betas[0]


@ON_DEVICES
def test_values_that_make_states_are_numbers(place):
    p = parameters_on(place)
    momentum = torch.tensor(0.9, device=place.device)
    optimizer = make(place, p, outboard.SGD8bit, momentum=0.9)
    optimizer.param_groups[0]["momentum"] = momentum
    with pytest.raises(ValueError, match="momentum of group 0 is a tensor"):
        optimizer.update_hyperparameters()
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.param_groups[0]["lr"] = torch.ones(2, device=place.device)
    with pytest.raises(ValueError, match="one number on"):
        optimizer.update_hyperparameters()


@ON_DEVICES
def test_resumes_copies_and_pickles(place):
    p = parameters_on(place)
    optimizer = make(place, p, outboard.Adam8bit)
    train(optimizer, p, 2)
    q, copied = copy.deepcopy((p, optimizer))
    r, pickled = pickle.loads(pickle.dumps((p, optimizer)))
    s = [torch.nn.Parameter(v) for v in clones(p)]
    resumed = make(place, s, outboard.Adam8bit, lr=0.5)
    resumed.load_state_dict(optimizer.state_dict(clone=True, compressed=True))
    for each, parameters in ((optimizer, p), (copied, q), (pickled, r), (resumed, s)):
        assert each.defaults["capturable"] is True
        train(each, parameters, 2, first=2)
    for parameters in (q, r, s):
        assert_same(clones(parameters), clones(p))
    assert resumed.state[s[0]]["step"].item() == 4


@ON_DEVICES
def test_state_may_go_to_and_come_from_an_ordinary_optimizer(place):
    p, q = parameters_on(place), parameters_on(place)
    first, second = make(place, p), make(place, q, capturable=False)
    train(first, p, 2)
    train(second, q, 2)
    saved = first.state_dict(clone=True, compressed=True)
    first.load_state_dict(second.state_dict(clone=True, compressed=True))
    second.load_state_dict(saved)
    assert first.param_groups[0]["capturable"] and not second.param_groups[0]["capturable"]
    train(first, p, 1, first=2)
    train(second, q, 1, first=2)
    assert_same(clones(p), clones(q))


@ON_DEVICES
def test_state_is_converted_and_reset(place):
    p, q = parameters_on(place), parameters_on(place)
    for parameters, capturable in ((p, True), (q, False)):
        optimizer = make(place, parameters, capturable=capturable)
        train(optimizer, parameters, 2)
        optimizer.convert_state("4bit")
        train(optimizer, parameters, 1, first=2)
        optimizer.state = {}
        assert not optimizer.state
        train(optimizer, parameters, 1, first=3)
        assert optimizer.state[parameters[0]]["step"].item() == 1
    assert_same(clones(p), clones(q))


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"max_grad_norm": 1.0}, ValueError, "clip_grad_norm_"),
        ({"skip_nonfinite": True}, ValueError, "skip_nonfinite"),
        ({"fused_amp": True}, ValueError, "fused_amp"),
        ({"capturable": 1}, TypeError, "capturable"),
        ({"differentiable": True, "cls": outboard.LowBitOptimizer}, ValueError, "differentiable"),
        ({"lr": -1.0}, ValueError, "-1.0"),
    ],
)
def test_options_that_need_the_host_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        make(SIMULATED, parameters_on(SIMULATED), **options)


def test_parameters_on_the_cpu_are_refused():
    with pytest.raises(ValueError, match="one CUDA device"):
        make(CPU, parameters_on(CPU))


def test_the_offloading_optimizer_refuses():
    with pytest.raises(ValueError, match="LowBitOptimizer"):
        SIMULATED.optimizer(parameters_on(SIMULATED), capturable=True)


def test_a_group_cannot_leave():
    p = parameters_on(SIMULATED)
    with pytest.raises(ValueError, match="capturable=False"):
        make(SIMULATED, [{"params": p, "capturable": False}])
    with pytest.raises(ValueError, match="capturable"):
        make(SIMULATED, [{"params": p, "capturable": True}], capturable=False)


def test_calls_that_need_the_host_are_refused():
    p = parameters_on(SIMULATED)
    optimizer = make(SIMULATED, p)
    backward(p, make_gradients(p, 0))
    with pytest.raises(RuntimeError, match="clip_grad_norm_ in the graph"):
        optimizer.clip_grad_norm_(1.0)
    optimizer.found_inf = torch.zeros(())
    with pytest.raises(ValueError, match="gradient scaler"):
        optimizer.step()
    del optimizer.found_inf
    optimizer.step()
    with pytest.raises(RuntimeError, match="capturable=True"):
        make(SIMULATED, parameters_on(SIMULATED), capturable=False).update_hyperparameters()


def test_values_out_of_range_are_refused_and_change_nothing():
    p = parameters_on(SIMULATED)
    optimizer = make(SIMULATED, p)
    train(optimizer, p, 1)
    before = clones(p)
    optimizer.param_groups[0]["betas"] = (0.9, 1.5)
    with pytest.raises(ValueError, match=r"betas\.1"):
        optimizer.update_hyperparameters()
    backward(p, make_gradients(p, 1))
    with pytest.raises(ValueError, match=r"betas\.1"):
        optimizer.step()
    assert_same(clones(p), before)


# ---- Graphs --------------------------------------------------------------------------------------


def captured_training(optimizer, parameters, gradients):
    """A graph of one backward and step with the gradients that `gradients` then hold."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.zero_grad(set_to_none=True)
        backward(parameters, gradients)
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        backward(parameters, gradients)
        optimizer.step()
    return graph


def fill(gradients, parameters, step):
    for gradient, value in zip(gradients, make_gradients(parameters, step), strict=True):
        gradient.copy_(value)


def compare_replays(name, make_lr, change, **options):
    """Trains with replays, and with ordinary steps whose learning rate is halved each time."""
    cls = NAMED_CLASSES[name]
    p, q = parameters_on(CUDA), parameters_on(CUDA)
    usual = make(CUDA, q, cls, capturable=False, lr=1e-2, **options)
    optimizer = make(CUDA, p, cls, lr=make_lr(1e-2), **options)
    gradients = make_gradients(p, 0)
    graph = captured_training(optimizer, p, gradients)
    train(usual, q, 1)
    for step in range(1, 5):
        usual.param_groups[0]["lr"] *= 0.5
        change(optimizer, usual.param_groups[0]["lr"])
        fill(gradients, p, step)
        graph.replay()
        train(usual, q, 1, first=step)
    assert_same(clones(p), clones(q))
    assert_same(
        optimizer.state_dict(clone=True, compressed=True)["state"],
        usual.state_dict(clone=True, compressed=True)["state"],
    )
    assert optimizer.state[p[0]]["step"].item() == 5


@pytest.mark.gpu
@pytest.mark.parametrize("master", ["split", "stochastic", "fp32"])
@pytest.mark.parametrize("name", list(NAMED_CLASSES))
def test_replays_are_steps(name, master):
    def change(optimizer, lr):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.update_hyperparameters()

    compare_replays(name, float, change, master=master)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["AdamW8bit", "SGD8bit", "LAMB8bit"])
def test_replays_read_a_learning_rate_that_is_a_tensor(name):
    def on_device(lr):
        return torch.tensor(lr, dtype=torch.float64, device="cuda")

    def change(optimizer, lr):
        optimizer.param_groups[0]["lr"].fill_(lr)

    compare_replays(name, on_device, change)


@pytest.mark.gpu
def test_schedulers_reach_replays_through_a_tensor():
    p = parameters_on(CUDA)
    optimizer = make(CUDA, p, lr=torch.tensor(0.5, device="cuda"))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.0)
    graph = captured_training(optimizer, p, make_gradients(p, 0))
    before = clones(p)
    graph.replay()
    assert not torch.equal(p[0], before[0])
    schedule.step()
    after = clones(p)
    graph.replay()
    assert_same(clones(p), after)


@pytest.mark.gpu
def test_static_gradients_and_steps_between_replays():
    p, q = parameters_on(CUDA), parameters_on(CUDA)
    optimizer, usual = make(CUDA, p), make(CUDA, q, capturable=False)
    train(usual, q, 4)
    for parameter in p:
        parameter.grad = torch.zeros_like(parameter)
    static = [parameter.grad for parameter in p]
    fill(static, p, 0)
    optimizer.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(1, 4):
        fill(static, p, step)
        if step == 2:
            optimizer.step()
        else:
            graph.replay()
    assert_same(clones(p), clones(q))


@pytest.mark.gpu
def test_two_graphs_of_one_optimizer():
    p, q = parameters_on(CUDA), parameters_on(CUDA)
    optimizer, usual = make(CUDA, p), make(CUDA, q, capturable=False)
    gradients = make_gradients(p, 0)
    both = captured_training(optimizer, p, gradients)
    optimizer.zero_grad(set_to_none=True)
    first = torch.cuda.CUDAGraph()
    with torch.cuda.graph(first):
        backward(p[:1], gradients[:1])
        optimizer.step()
    train(usual, q, 1)
    for step in range(1, 5):
        fill(gradients, p, step)
        (first if step % 2 else both).replay()
        usual.zero_grad()
        count = 1 if step % 2 else len(q)
        backward(q[:count], make_gradients(q, step)[:count])
        usual.step()
    assert_same(clones(p), clones(q))
    assert [optimizer.state[x]["step"].item() for x in p] == [5, 3, 3]


@pytest.mark.gpu
def test_loading_reaches_captured_graphs():
    p, q = parameters_on(CUDA), parameters_on(CUDA)
    lr = torch.tensor(1e-2, device="cuda")
    optimizer = make(CUDA, p, lr=lr)
    gradients = make_gradients(p, 0)
    graph = captured_training(optimizer, p, gradients)
    usual = make(CUDA, q, capturable=False, lr=3e-2)
    train(usual, q, 3)
    with torch.no_grad():
        for parameter, value in zip(p, q, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(usual.state_dict(clone=True, compressed=True))
    optimizer.update_hyperparameters()
    assert optimizer.param_groups[0]["lr"] is lr
    fill(gradients, p, 3)
    graph.replay()
    usual.param_groups[0]["lr"] = lr.item()
    train(usual, q, 1, first=3)
    assert_same(clones(p), clones(q))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_capture_without_a_step_before_is_refused():
    p = parameters_on(CUDA)
    optimizer = make(CUDA, p)
    for parameter in p:
        parameter.grad = torch.ones_like(parameter)
    before = clones(p)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="before the capture"), torch.cuda.graph(graph):
        optimizer.step()
    optimizer.step()
    torch.cuda.synchronize()
    assert not torch.equal(p[0], before[0])


@pytest.mark.gpu
def test_what_captured_graphs_rely_on_stays():
    p = parameters_on(CUDA)
    optimizer = make(CUDA, p, outboard.SGD8bit, momentum=0.9)
    captured_training(optimizer, p, make_gradients(p, 0))
    with pytest.raises(RuntimeError, match="captured graphs hold"):
        optimizer.convert_state("4bit")
    optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(RuntimeError, match="momentum"):
        optimizer.update_hyperparameters()
    optimizer.param_groups[0]["momentum"] = torch.tensor(0.9, device="cuda")
    with pytest.raises(ValueError, match="momentum"):
        optimizer.update_hyperparameters()
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.update_hyperparameters()


@pytest.mark.gpu
def test_step_does_not_wait_for_the_device():
    p = parameters_on(CUDA)
    optimizer = make(CUDA, p, lr=torch.tensor(1e-3, device="cuda"))
    train(optimizer, p, 2)
    assert_step_does_not_wait(optimizer, p)
