"""factored_second_moment=True: means of rows and columns in the place of a second moment. Equality
of overlapped runs is in test_equality.py."""

import copy
import pickle

import outboard
import pytest
import torch
from support import CPU, CUDA, SIMULATED, assert_same, backward, clones, make_gradients, train
from support import make_parameters as make

SHAPES = ((96, 64), (160,), (40, 8, 5, 5), (1, 9), (9, 1), ())
PLACES = [CPU, SIMULATED, pytest.param(CUDA, marks=pytest.mark.gpu)]
WHERE = pytest.mark.parametrize("place", PLACES, ids=lambda p: p.name)


def make_parameters(place=CPU, dtype=torch.float32):
    return make(place.device, dtype, SHAPES)


def offloaded(place, params, **options):
    return place.optimizer(params, factored_second_moment=True, **options)


def low_bit(place, params, **options):
    """The other class, which has no simulated copies to wait for."""
    options.setdefault("state_format", "fp32")
    return outboard.LowBitOptimizer(
        params, factored_second_moment=True, simulate=place.simulate, **options
    )


FACES = pytest.mark.parametrize("face", [offloaded, low_bit])


def is_matrix(parameter):
    return parameter.dim() >= 2


class Reference:
    """The formulas in double."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        self.weights = [p.detach().double().cpu().flatten(1).clone() for p in parameters]
        self.m = [torch.zeros_like(w) for w in self.weights]
        self.rows = [torch.zeros(w.shape[0], 1, dtype=torch.float64) for w in self.weights]
        self.columns = [torch.zeros(1, w.shape[1], dtype=torch.float64) for w in self.weights]
        self.options = (lr, *betas, eps, weight_decay)
        self.steps = 0

    def step(self, gradients):
        lr, beta1, beta2, eps, weight_decay = self.options
        self.steps += 1
        for i, gradient in enumerate(gradients):
            g = gradient.double().cpu().flatten(1)
            self.m[i].lerp_(g, 1 - beta1)
            self.rows[i].lerp_((g * g).mean(1, keepdim=True), 1 - beta2)
            self.columns[i].lerp_((g * g).mean(0, keepdim=True), 1 - beta2)
            v = self.rows[i] * self.columns[i] / self.rows[i].mean()
            root = (v / (1 - beta2**self.steps)).sqrt() + eps
            self.weights[i] *= 1 - lr * weight_decay
            self.weights[i] -= lr / (1 - beta1**self.steps) * self.m[i] / root


@FACES
@WHERE
def test_steps_follow_the_formulas_and_keep_what_they_say(face, place):
    p = make_parameters(place)
    optimizer = face(place, p)
    matrices = [q for q in p if is_matrix(q)]
    reference = Reference(matrices)
    vectors = [torch.nn.Parameter(q.detach().clone()) for q in p if not is_matrix(q)]
    plain = place.optimizer(vectors)
    for step in range(4):
        gradients = make_gradients(p, step)
        optimizer.zero_grad()
        plain.zero_grad()
        backward(p, gradients)
        backward(vectors, [g for g in gradients if not is_matrix(g)])
        optimizer.step()
        plain.step()
        reference.step([g for g in gradients if is_matrix(g)])
    optimizer.synchronize()
    plain.synchronize()
    for q, weight, rows, columns in zip(
        matrices, reference.weights, reference.rows, reference.columns, strict=True
    ):
        state = optimizer.state[q]
        assert list(state) == ["step", "exp_avg", "exp_avg_sq_row", "exp_avg_sq_col"]
        assert state["exp_avg"].shape == q.shape
        torch.testing.assert_close(q.detach().cpu().flatten(1), weight.float(), rtol=0, atol=2e-6)
        torch.testing.assert_close(state["exp_avg_sq_row"].cpu(), rows.flatten().float())
        torch.testing.assert_close(state["exp_avg_sq_col"].cpu(), columns.flatten().float())
    vectors_here = [q for q in p if not is_matrix(q)]
    assert_same(vectors_here, vectors)
    for q in vectors_here:
        assert list(optimizer.state[q]) == ["step", "exp_avg", "exp_avg_sq"]


@WHERE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("state_format", ["fp32", "bf16", "8bit", "4bit"])
def test_everywhere_the_bits_of_the_cpu(place, dtype, state_format):
    outcomes = []
    for where, options in (
        (CPU, {}),
        (place, {"placement": "host", "min_offload_elements": 0}),
        (place, {"placement": "streamed"}),
        (place, {"placement": "resident"}),
        (place, {"offload_gradients": True, "max_grad_norm": 1e6, "chunk_elements": 4096}),
    ):
        p = make_parameters(where, dtype)
        if options.get("placement") == "streamed":
            options = {"placement": {q: "streamed" for q in p if is_matrix(q)}}
        optimizer = offloaded(
            where, p, state_format=state_format, min_quantized_elements=0, **options
        )
        train(optimizer, p, 3)
        optimizer.synchronize()
        outcomes.append((clones(p), optimizer.state_dict(clone=True)["state"]))
    for weights, state in outcomes[1:]:
        assert_same([w.cpu() for w in weights], outcomes[0][0])
        for index, entry in outcomes[0][1].items():
            assert_same({k: state[index][k].cpu() for k in entry}, entry)


@FACES
@WHERE
def test_no_gradient_gives_no_nan(face, place):
    p = make_parameters(place)
    optimizer = face(place, p)
    backward(p, [torch.zeros_like(q) for q in p])
    optimizer.step()
    optimizer.synchronize()
    assert all(q.isfinite().all() for q in p)
    train(optimizer, p, 1)
    optimizer.synchronize()
    assert all(q.isfinite().all() for q in p)


def test_second_moments_take_no_memory():
    shape = (512, 1024)
    held = {}
    for is_factored in (False, True):
        p = make("cpu", torch.float32, (shape,))
        optimizer = CPU.optimizer(p, factored_second_moment=is_factored)
        train(optimizer, p, 1)
        held[is_factored] = optimizer.stats().memory.host_state
    elements = shape[0] * shape[1]
    assert held[False] == 8 * elements
    assert 4 * elements < held[True] <= 4 * (elements + sum(shape) + 1024)


@FACES
@pytest.mark.parametrize(
    ("state_format", "compressed"), [("fp32", False), ("fp32", True), ("8bit", True)]
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    face, state_format, compressed, tmp_path
):
    p = make_parameters()
    optimizer = face(CPU, p, state_format=state_format)
    train(optimizer, p, 2)
    optimizer.save(tmp_path / "state.pt", compressed=compressed)
    q = [torch.nn.Parameter(w.clone()) for w in clones(p)]
    resumed = face(CPU, q, state_format=state_format)
    resumed.load(tmp_path / "state.pt")
    for one, parameters in ((optimizer, p), (resumed, q)):
        train(one, parameters, 2, first=2)
    assert_same(p, q)
    for saved in (optimizer.state_dict(), resumed.state_dict()):
        assert saved["state"][2]["exp_avg_sq_row"].shape == (40,)
        assert saved["state"][2]["exp_avg_sq_col"].shape == (200,)


def test_copies_and_pickles_go_on_with_the_same_bits():
    p = make_parameters()
    optimizer = offloaded(CPU, p, state_format="8bit")
    train(optimizer, p, 2)
    q, deep = copy.deepcopy((p, optimizer))
    r, pickled = pickle.loads(pickle.dumps((p, optimizer)))
    for one, parameters in ((optimizer, p), (deep, q), (pickled, r)):
        train(one, parameters, 2, first=2)
    assert_same(p, q)
    assert_same(p, r)


def test_formats_change_around_the_means():
    p = make_parameters()
    optimizer = offloaded(CPU, p, state_format="8bit", min_quantized_elements=0)
    train(optimizer, p, 2)
    before = optimizer.state_dict(clone=True)["state"]
    optimizer.convert_state("4bit")
    after = optimizer.state_dict(clone=True)["state"]
    for index in (0, 2):
        for key in ("exp_avg_sq_row", "exp_avg_sq_col"):
            assert torch.equal(before[index][key], after[index][key])
    assert not torch.equal(before[0]["exp_avg"], after[0]["exp_avg"])
    train(optimizer, p, 1, first=2)
    assert all(q.isfinite().all() for q in p)


def spoil(key, value):
    def change(entry):
        entry[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil("exp_avg_sq_row", torch.ones(64)), r"exp_avg_sq_row.*\(64,\).*\(96,\)"),
        (spoil("exp_avg_sq_col", torch.ones(1, 64)), r"exp_avg_sq_col.*\(1, 64\).*\(64,\)"),
        (spoil("exp_avg_sq_col", torch.ones(64, dtype=torch.int32)), "exp_avg_sq_col.*int32"),
        (spoil("exp_avg_sq", torch.ones(96, 64)), "factored_second_moment that was saved"),
        (lambda entry: entry.pop("exp_avg_sq_row"), "lacks 'exp_avg_sq_row'"),
        (
            spoil("exp_avg_sq_row.sym8.128.codes", torch.ones(96, dtype=torch.uint8)),
            "kept in fp32",
        ),
    ],
)
def test_wrong_state_is_refused_before_anything_changes(change, words):
    p = make_parameters()
    optimizer = offloaded(CPU, p)
    train(optimizer, p, 1)
    before = optimizer.state_dict(clone=True)["state"]
    wrong = optimizer.state_dict(clone=True)
    for entry in wrong["state"].values():
        entry["exp_avg"].zero_()
    change(wrong["state"][0])
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()["state"]
    for index, entry in before.items():
        assert_same(after[index], entry)


@pytest.mark.parametrize("saved", [False, True])
def test_the_two_kinds_of_state_do_not_load_into_each_other(saved):
    p = make_parameters()
    source = CPU.optimizer(p, factored_second_moment=saved)
    target = CPU.optimizer(make_parameters(), factored_second_moment=not saved)
    train(source, p, 1)
    with pytest.raises(ValueError, match="factored_second_moment that was saved"):
        target.load_state_dict(source.state_dict())


def test_only_adamw_is_factored():
    p = make_parameters()
    for cls, options in (
        (torch.optim.Adam, {}),
        (torch.optim.SGD, {}),
        (torch.optim.RAdam, {}),
        (outboard.LAMB, {}),
    ):
        with pytest.raises(ValueError, match="factored_second_moment=True is for AdamW"):
            CPU.optimizer(p, cls, factored_second_moment=True, **options)
    with pytest.raises(ValueError, match="amsgrad"):
        offloaded(CPU, p, amsgrad=True)
    with pytest.raises(TypeError, match="factored_second_moment is 1"):
        CPU.optimizer(p, factored_second_moment=1)
    with pytest.raises(ValueError, match="factored_second_moment=True is for AdamW"):
        outboard.Lion8bit(p, factored_second_moment=True)
    optimizer = outboard.AdamW8bit(p, factored_second_moment=True)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="amsgrad"):
        train(optimizer, p, 1)


def test_what_is_no_matrix_in_memory_keeps_a_second_moment():
    image = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    p = [torch.nn.Parameter(q) for q in (image, torch.randn(6, 5).t(), torch.zeros(0, 5))]
    optimizer = offloaded(CPU, p)
    train(optimizer, p, 1)
    for q in p[:2]:
        assert optimizer.state[q]["exp_avg_sq"].shape == q.shape


@pytest.mark.parametrize("place", PLACES[1:], ids=lambda p: p.name)
@pytest.mark.parametrize("state_format", ["fp32", "8bit", "4bit"])
def test_capturable_steps_have_the_bits_of_ordinary_ones(place, state_format):
    outcomes = []
    for capturable in (False, True):
        p = make_parameters(place, torch.bfloat16)
        optimizer = low_bit(place, p, state_format=state_format, capturable=capturable)
        train(optimizer, p, 3)
        outcomes.append((clones(p), optimizer.state_dict(clone=True, compressed=True)["state"]))
    assert_same(outcomes[0][0], outcomes[1][0])
    assert_same(outcomes[0][1], outcomes[1][1])


@pytest.mark.gpu
@pytest.mark.parametrize("state_format", ["fp32", "8bit"])
def test_replays_are_steps(state_format):
    p, q = make_parameters(CUDA), make_parameters(CUDA)
    usual = low_bit(CUDA, q, state_format=state_format)
    optimizer = low_bit(CUDA, p, state_format=state_format, capturable=True)
    gradients = make_gradients(p, 0)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        backward(p, gradients)
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            optimizer.step()
        for _ in range(2):
            graph.replay()
    stream.synchronize()
    for _ in range(3):
        usual.zero_grad()
        backward(q, gradients)
        usual.step()
    assert_same(clones(p), clones(q))
