"""State in low-bit formats: where it is used, how it trains, converts, saves and resumes."""

import copy

import outboard
import pytest
import torch
from support import CPU, SIMULATED, assert_same, clones, make_parameters, snapshot, train

FORMATS = [name for name in outboard.state_formats() if name not in ("fp32", "bf16")]
ALL = ["fp32", "bf16", *FORMATS, "sym8/fp32", "bf16/root8"]
# One of whole blocks, one with a partial block and an odd count, one below the default threshold.
SHAPES = ((96, 64), (65, 65), (160,))
CLASSES = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "amsgrad": True}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "lion": (outboard.Lion, {"lr": 1e-3}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3, "centered": True, "momentum": 0.5}),
    "adamw_split8": (torch.optim.AdamW, {"lr": 1e-2, "master": "split8"}),
}


def quantised(place, parameters, state_format="8bit", cls=torch.optim.AdamW, **options):
    options.setdefault("min_quantized_elements", 0)
    return place.optimizer(parameters, cls, state_format=state_format, **options)


def twins_of(parameters):
    return [torch.nn.Parameter(v) for v in clones(parameters)]


def exact(optimizer):
    return optimizer.state_dict(clone=True, compressed=True)


def resumed_from(optimizer, parameters, place, state_format, saved=None, **options):
    """A second optimizer over the same weights that has loaded the state of the first."""
    twins = twins_of(parameters)
    second = quantised(place, twins, state_format, **options)
    second.load_state_dict(exact(optimizer) if saved is None else saved)
    return second, twins


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("case", CLASSES)
def test_compressed_state_resumes_with_the_same_bits(place, state_format, case, tmp_path):
    cls, options = CLASSES[case]
    p = make_parameters(place.device, torch.bfloat16, SHAPES)
    optimizer = quantised(place, p, state_format, cls, chunk_elements=4096, **options)
    train(optimizer, p, 3)
    optimizer.save(tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    q = twins_of(p)
    resumed = quantised(place, q, state_format, cls, **options)
    resumed.load(tmp_path / "state.pt")
    assert_same(exact(resumed)["state"], exact(optimizer)["state"])
    train(optimizer, p, 3, first=3)
    train(resumed, q, 3, first=3)
    assert_same(clones(q), clones(p))
    assert_same(exact(resumed)["state"], exact(optimizer)["state"])


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_format_loads_into_every_other(source, target, compressed):
    p = make_parameters(shapes=SHAPES)
    optimizer = quantised(CPU, p, source)
    train(optimizer, p, 2)
    before = exact(optimizer)["state"]
    loaded, q = resumed_from(optimizer, p, CPU, target, optimizer.state_dict(compressed=compressed))
    wide, _ = resumed_from(optimizer, p, CPU, "fp32", optimizer.state_dict())
    wide.convert_state(target)
    converted = exact(wide)["state"]
    for index, entry in exact(loaded)["state"].items():
        for key, value in entry.items():
            keeps_its_bytes = compressed and "." in key and key in before[index]
            assert_same(value, (before if keeps_its_bytes else converted)[index][key])
    train(loaded, q, 1, first=2)


@pytest.mark.parametrize("state_format", FORMATS)
def test_decoded_state_is_near_the_fp32_state(place, state_format):
    p, q = (make_parameters(place.device, shapes=SHAPES) for _ in range(2))
    low, wide = quantised(place, p, state_format), place.optimizer(q)
    train(low, p, 1)
    train(wide, q, 1)
    for ours, theirs in zip(p, q, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            got, want = low.state[ours][key], wide.state[theirs][key].cpu()
            assert got.shape == want.shape and got.dtype is torch.float32
            # Half the widest gap between levels of any 4-bit format.
            assert ((got - want).abs() <= 0.16 * want.abs().max()).all()
    assert low.state[p[0]]["exp_avg"].device.type == "cpu"


def test_a_plain_state_dict_loads_into_torch():
    p = make_parameters(shapes=SHAPES)
    optimizer = quantised(SIMULATED, p)
    train(optimizer, p, 2)
    theirs = torch.optim.AdamW(q := twins_of(p))
    theirs.load_state_dict(optimizer.state_dict(clone=True))
    for ours, other in zip(p, q, strict=True):
        assert_same(theirs.state[other]["exp_avg"], optimizer.state[ours]["exp_avg"])
    train(theirs, q, 1, first=2)
    optimizer.load_state_dict(theirs.state_dict())
    train(optimizer, p, 1, first=3)


def test_compressed_layout_is_plain_tensors(place):
    p = make_parameters(place.device, shapes=SHAPES)
    optimizer = quantised(place, p, min_quantized_elements=4096)
    train(optimizer, p, 1)
    state = optimizer.state_dict(compressed=True)["state"]
    n = 65 * 65
    entry = state[1]
    assert list(entry) == [
        "step",
        *(f"exp_avg.sym8.128.{part}" for part in ("codes", "scales", "layout")),
        *(f"exp_avg_sq.root8.128.{part}" for part in ("codes", "scales", "layout")),
    ]
    codes, scales = entry["exp_avg.sym8.128.codes"], entry["exp_avg.sym8.128.scales"]
    assert (codes.dtype, codes.shape) == (torch.uint8, (n,))
    assert (scales.dtype, scales.shape) == (torch.float32, (-(-n // 128),))
    assert entry["exp_avg.sym8.128.layout"].tolist() == [[65, 65], [65, 1]]
    assert state[2]["exp_avg"].dtype is torch.float32  # below min_quantized_elements
    assert "exp_avg.sym8.128.codes" not in optimizer.state[p[1]]


def test_the_unused_half_of_the_last_byte_is_zero(place):
    p = make_parameters(place.device, shapes=((65, 65),))
    optimizer = quantised(place, p, "4bit")
    train(optimizer, p, 1)
    entry = exact(optimizer)["state"][0]
    for key in (key for key in entry if key.endswith(".codes")):
        assert entry[key].shape == (-(-65 * 65 // 2),)
        assert int(entry[key][-1]) < 16 or int(entry[key][-1]) % 16 == 0


def test_small_parameters_keep_fp32_state(place):
    p = make_parameters(place.device, shapes=SHAPES)
    held = [
        quantised(place, p, min_quantized_elements=least).stats().memory
        for least in (0, 4096, 10**9)
    ]
    sizes = [m.host_state + m.device_state for m in held]
    assert sizes[0] < sizes[1] < sizes[2]


def test_formats_by_name_by_parameter_and_by_group(place):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(96, 64) for name in ("a", "b", "embed")}).to(
        place.device
    )
    named = dict(model.named_parameters())
    options = {"state_formats": {"embed.*": "fp32", named["b.weight"]: ("sym8", 64)}}
    groups = [
        {"params": [(n, p) for n, p in named.items() if not n.startswith("a.")]},
        {"params": [("a.weight", named["a.weight"])], "block_size": 256},
        {"params": [("a.bias", named["a.bias"])], "state_format": "bf16"},
    ]
    optimizer = quantised(place, groups, **options)
    train(optimizer, list(named.values()), 1)
    keys = {
        name: sorted(key for key in entry if key.startswith("exp_avg_sq"))
        for name, entry in zip(
            [n for g in optimizer.param_groups for n in g["param_names"]],
            exact(optimizer)["state"].values(),
            strict=True,
        )
    }
    assert keys["embed.weight"] == keys["embed.bias"] == keys["a.bias"] == ["exp_avg_sq"]
    assert keys["b.weight"][0] == "exp_avg_sq.sym8.64.codes"
    assert keys["b.bias"][0] == "exp_avg_sq.root8.128.codes"
    assert keys["a.weight"][0] == "exp_avg_sq.root8.256.codes"
    assert optimizer.state[named["a.bias"]]["exp_avg"].dtype is torch.bfloat16
    assert "elements sym8/128, root8/128" in repr(optimizer)


@pytest.mark.parametrize("cls", [torch.optim.Adamax, torch.optim.NAdam])
def test_classes_without_a_native_rule_refuse_low_bit_state(place, cls):
    with pytest.raises(ValueError, match="native rule"):
        quantised(place, make_parameters(place.device), cls=cls)


def test_conversion_in_place_keeps_what_it_can(place):
    p = make_parameters(place.device, torch.bfloat16, SHAPES)
    optimizer = quantised(place, p)
    train(optimizer, p, 2)
    before = snapshot(optimizer, p)
    held = optimizer.stats().memory
    optimizer.convert_state("fp32")
    assert_same(snapshot(optimizer, p), before)  # every level is an fp32 number
    optimizer.convert_state("8bit")
    for entry, old in zip(snapshot(optimizer, p)[1].values(), before[1].values(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):  # scales may move by a last place
            torch.testing.assert_close(entry[key], old[key], rtol=1e-6, atol=0.0)
    again = optimizer.stats().memory
    optimizer.convert_state("fp32")
    optimizer.convert_state("8bit")
    assert optimizer.stats().memory == again  # the memory of the first time is used again
    assert again.device_state == held.device_state
    train(optimizer, p, 1, first=2)


def test_conversion_of_some_and_before_the_first_step(place):
    named = [(f"layer.{i}", q) for i, q in enumerate(make_parameters(place.device, shapes=SHAPES))]
    p = [q for _, q in named]
    optimizer = quantised(place, named)
    optimizer.convert_state("bf16", parameters="layer.1")
    train(optimizer, p, 1)
    optimizer.convert_state("sym8", 64, parameters=["layer.0", p[2]])
    train(optimizer, p, 1, first=1)
    entries = exact(optimizer)["state"]
    assert "exp_avg_sq.sym8.64.codes" in entries[0] and "exp_avg_sq.sym8.64.codes" in entries[2]
    assert entries[1]["exp_avg"].dtype is torch.bfloat16
    for bad in (("8bit", 100), ("x", None), ("8bit", None, "head.*")):
        with pytest.raises(ValueError):
            optimizer.convert_state(*bad[:2], parameters=bad[2] if len(bad) > 2 else None)
    assert_same(exact(optimizer)["state"], entries)


def test_copies_keep_converted_formats_and_bits(place):
    p = make_parameters(place.device, torch.bfloat16, SHAPES)
    optimizer = quantised(place, p)
    train(optimizer, p, 2)
    optimizer.convert_state("sym8", 64, parameters=p[0])
    q, copied = copy.deepcopy((p, optimizer))
    assert_same(exact(copied)["state"], exact(optimizer)["state"])
    train(optimizer, p, 2, first=2)
    train(copied, q, 2, first=2)
    assert_same(clones(q), clones(p))


def test_weights_in_another_memory_order_keep_their_elements(place):
    def parameters():
        (p,) = make_parameters(place.device, shapes=((8, 6, 10, 12),))
        return p, torch.nn.Parameter(p.detach().to(memory_format=torch.channels_last))

    plain, last = parameters()
    source = quantised(place, [last])
    train(source, [last], 2)
    same = quantised(place, [parameters()[1]])
    same.load_state_dict(exact(source))
    assert_same(exact(same)["state"], exact(source)["state"])
    other = quantised(place, [plain], "fp32")
    other.load_state_dict(exact(source))
    wanted = source.state[last]["exp_avg"]
    assert_same(other.state[plain]["exp_avg"].cpu().contiguous(), wanted.contiguous())
    requantised = quantised(place, [plain])
    requantised.load_state_dict(exact(source))
    got = requantised.state[plain]["exp_avg"]
    assert ((got - wanted).abs() <= 0.02 * wanted.abs().max()).all()


def test_copies_of_state_are_not_kept(place):
    p = make_parameters(place.device, shapes=SHAPES)
    optimizer = quantised(place, p)
    train(optimizer, p, 1)
    seen = optimizer.state[p[0]]["exp_avg"]
    before = seen.clone()
    train(optimizer, p, 1, first=1)
    assert_same(seen, before)
    assert optimizer._state == {}
    optimizer.state_dict(compressed=True)
    assert optimizer._state == {}


def _damage(entry, part, change):
    key = next(key for key in entry if key.endswith(part))
    entry[key] = change(entry[key])


def _at(index, value):
    def change(tensor):
        tensor.view(-1)[index] = value
        return tensor

    return change


DAMAGE = {
    "short codes": ("codes", lambda t: t[:-1], "bytes of codes"),
    "short scales": ("scales", lambda t: t[:-1], "scales"),
    "codes as floats": ("codes", lambda t: t.float(), "Float.*Byte"),
    "scales as halves": ("scales", lambda t: t.half(), "Half.*Float"),
    "NaN scale": ("scales", _at(3, float("nan")), "scale 3"),
    "infinite scale": ("scales", _at(0, float("inf")), "scale 0"),
    "negative scale": ("scales", _at(1, -1.0), "scale 1"),
    "code that does not occur": ("sym8.128.codes", _at(5, 128), "code"),
    "other shape": ("layout", lambda t: t.flip(1), "layout"),
    "overlapping strides": ("layout", _at(2, 1), "strides"),
    "no tensor": ("codes", lambda t: None, "NoneType"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_compressed_state_changes_nothing(place, case):
    part, change, message = DAMAGE[case]
    p = make_parameters(place.device, shapes=((96, 64), (64, 48), (65, 66)))
    optimizer = quantised(place, p)
    train(optimizer, p, 2)
    saved = exact(optimizer)
    train(optimizer, p, 1, first=2)
    before = exact(optimizer)
    _damage(saved["state"][2], part, change)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(exact(optimizer)["state"], before["state"])


@pytest.mark.parametrize(
    "name, message",
    [
        ("exp_avg.sym9.128.codes", "sym9"),
        ("exp_avg.sym8.100.codes", "100"),
        ("exp_avg.sym8.x.codes", "none that"),
        ("exp_avg.f32.0.codes", "blocks"),
        ("exp_avg.codes", "none that"),
        ("sums.sym8.128.codes", "sums"),
        ("exp_avg.root8.128.codes", "another format"),
    ],
)
def test_compressed_state_with_a_wrong_name_changes_nothing(name, message):
    p = make_parameters(shapes=SHAPES)
    optimizer = quantised(CPU, p)
    train(optimizer, p, 1)
    before, saved = exact(optimizer), exact(optimizer)
    saved["state"][0] = {
        name if key == "exp_avg.sym8.128.codes" else key: value
        for key, value in saved["state"][0].items()
    }
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(exact(optimizer)["state"], before["state"])


def test_a_state_given_twice_or_in_part_changes_nothing():
    p = make_parameters(shapes=SHAPES)
    optimizer = quantised(CPU, p)
    train(optimizer, p, 1)
    before = exact(optimizer)
    twice, partly = exact(optimizer), exact(optimizer)
    twice["state"][0]["exp_avg"] = torch.zeros(SHAPES[0])
    del partly["state"][0]["exp_avg.sym8.128.scales"]
    for saved, message in ((twice, "compressed"), (partly, "missing")):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved)
    assert_same(exact(optimizer)["state"], before["state"])
