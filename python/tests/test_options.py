"""Bad input at construction: the error says who, what, the value and what to do."""

import outboard
import pytest
import torch
from outboard import hyper
from support import SIMULATED, assert_same, clones, make_parameters, train

BAD_OPTIONS = {
    "unknown": ({"foo": 1}, TypeError, r"foo=1.*min_offload_elements.*betas"),
    "misspelt": ({"offload_gradient": True}, TypeError, "did you mean 'offload_gradients'"),
    "a peer's name": ({"minimal_size": 1}, TypeError, "minimal_size"),
    "another rule's": ({"momentum": 0.9}, TypeError, r"momentum=0\.9.*AdamW takes"),
    "negative rate": ({"lr": -1.0}, ValueError, r"-1\.0"),
    "rate not a number": ({"lr": float("nan")}, ValueError, "nan"),
    "betas": ({"betas": (0.9, 1.0)}, ValueError, r"1\.0"),
    "eps": ({"eps": -1e-8}, ValueError, "eps"),
    "decay": ({"weight_decay": -0.1}, ValueError, "weight_decay"),
    "capturable": ({"capturable": True}, ValueError, "capturable=True"),
    "differentiable": ({"differentiable": True}, ValueError, "differentiable=True"),
    "master": ({"master": "half"}, ValueError, r"'half'.*split"),
    "state_format": ({"state_format": "3bit"}, ValueError, r"'3bit'.*bf16"),
    "format type": ({"state_format": 8}, TypeError, "state_format is 8"),
    "format of one side": ({"state_format": "8bit/9bit"}, ValueError, "'9bit'.*8bit"),
    "block size": ({"state_format": "8bit", "block_size": 100}, ValueError, "100.*128"),
    "block size type": ({"block_size": 64.0}, TypeError, r"64\.0"),
    "negative block size": ({"block_size": -64}, ValueError, "-64"),
    "quantised": ({"min_quantized_elements": -1}, ValueError, "min_quantized_elements is -1"),
    "formats": ({"state_formats": ["fp32"]}, TypeError, "state_formats is"),
    "formats by number": ({"state_formats": {0: "fp32"}}, TypeError, "key 0"),
    "format by name": (
        {"state_formats": {"*": "5bit"}},
        ValueError,
        r"state_formats\['\*'\].*5bit",
    ),
    "format for nothing": ({"state_formats": {"x.*": "fp32"}}, ValueError, r"x\.\*.*fits none"),
    "threads": ({"threads": 0}, ValueError, "threads is 0"),
    "threads type": ({"threads": 1.5}, TypeError, r"threads is 1\.5"),
    "seed": ({"seed": -1}, ValueError, "seed is -1"),
    "norm": ({"max_grad_norm": 0.0}, ValueError, r"max_grad_norm is 0\.0"),
    "norm type": ({"max_grad_norm": "big"}, TypeError, "'big'"),
    "flag type": ({"offload_gradients": 1}, TypeError, "offload_gradients is 1"),
    "chunk": ({"chunk_elements": 0}, ValueError, "chunk_elements is 0"),
    "threshold": ({"min_offload_elements": -5}, ValueError, "min_offload_elements is -5"),
    "resident": ({"resident": [3]}, TypeError, "resident holds 3"),
    "resident pattern": ({"resident": ["head.*"]}, ValueError, r"head.*named_parameters"),
    "simulate": ({"simulate": [1]}, ValueError, "simulate"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option_is_refused_with_a_remedy(case):
    options, kind, message = BAD_OPTIONS[case]
    with pytest.raises(kind, match=message) as caught:
        SIMULATED.optimizer(make_parameters(), **options)
    assert str(caught.value).startswith("[outboard] ")
    assert ";" in str(caught.value)


@pytest.mark.parametrize("params", [[], [{"params": []}], iter(())])
def test_no_parameters_is_an_error(params):
    with pytest.raises(ValueError, match="empty"):
        SIMULATED.optimizer(params)


def test_duplicates_are_refused_by_name():
    a, b, _ = make_parameters()
    for params in ([a, a], [("x", a), ("x2", a)], [{"params": [a]}, {"params": [b, a]}]):
        with pytest.raises(ValueError, match="twice"):
            SIMULATED.optimizer(params)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adadelta])
def test_unsupported_dtype_is_refused_by_name(dtype, cls):
    parameter = torch.nn.Parameter(torch.zeros(64, 96, dtype=dtype))
    with pytest.raises((TypeError, ValueError), match="odd_one"):
        SIMULATED.optimizer([("odd_one", parameter)], cls)


def test_torchs_own_refusals_stay():
    (a, *_) = make_parameters()
    with pytest.raises(TypeError):
        SIMULATED.optimizer(a)
    with pytest.raises(TypeError):
        SIMULATED.optimizer([{"params": {a}}])
    with pytest.raises(ValueError, match="non-leaf"):
        SIMULATED.optimizer([a * 2])
    with pytest.raises(TypeError):
        SIMULATED.optimizer([3])


@pytest.mark.parametrize("cls", ["AdamW", torch.nn.Linear, 3, torch.optim.AdamW([torch.zeros(1)])])
def test_optimizer_class_must_be_one(cls):
    with pytest.raises(TypeError, match="optimizer_class"):
        SIMULATED.optimizer(make_parameters(), cls)


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_classes_that_need_the_whole_model_are_refused(cls):
    with pytest.raises(ValueError, match=cls.__name__):
        SIMULATED.optimizer(make_parameters(), cls)


@pytest.mark.parametrize(
    "key, value",
    [
        ("capturable", True),
        ("lr", -1.0),
        ("betas", (2.0, 0.9)),
        ("master", "x"),
        ("state_format", "x"),
        ("block_size", -3),
    ],
)
def test_bad_value_in_a_group_is_refused(key, value):
    a, b, _ = make_parameters()
    with pytest.raises(ValueError):
        SIMULATED.optimizer([{"params": [a]}, {"params": [b], key: value}])


@pytest.mark.parametrize(
    "key, value",
    [
        ("lr", -1.0),
        ("lr", float("nan")),
        ("betas", (0.9, 1.0)),
        ("capturable", True),
        ("lr", "fast"),
        ("decoupled_weight_decay", False),
    ],
)
def test_bad_value_set_between_steps_is_refused_and_changes_nothing(place, key, value):
    p = make_parameters(place.device)
    optimizer = place.optimizer(p)
    train(optimizer, p, 1)
    before, good = clones(p), optimizer.param_groups[0][key]
    optimizer.param_groups[0][key] = value
    with pytest.raises((ValueError, TypeError)):
        train(optimizer, p, 1)
    assert_same(clones(p), before)
    optimizer.param_groups[0][key] = good
    train(optimizer, p, 1)


def test_parameter_put_in_or_taken_out_behind_the_optimizers_back_is_refused():
    p = make_parameters()
    optimizer = SIMULATED.optimizer(p[:2])
    optimizer.param_groups[0]["params"].append(p[2])
    with pytest.raises(ValueError, match="add_param_group"):
        optimizer.step()
    optimizer.param_groups[0]["params"] = p[:1]
    with pytest.raises(ValueError, match="in no group"):
        optimizer.step()


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_torchs_choices_of_implementation_are_accepted(flag):
    p, twins = make_parameters(), make_parameters()
    optimizer = SIMULATED.optimizer(p, **{flag: True})
    train(optimizer, p, 2)
    train(torch.optim.AdamW(twins, fused=True), twins, 2)
    assert_same(clones(p), clones(twins))


def test_resident_takes_parameters_names_and_patterns():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(96, 64) for name in ("a", "b", "head")})
    wishes = (model["a"].weight, "b.weight", "head*")
    optimizer = SIMULATED.optimizer(model.named_parameters(), resident=wishes)
    assert optimizer.stats().elements == {"resident": sum(p.numel() for p in model.parameters())}
    one = SIMULATED.optimizer(model.named_parameters(), resident="head.weight")
    assert one.stats().elements["host"] == 2 * 96 * 64


@pytest.mark.parametrize("threshold, host", [(0, 3), (160, 3), (161, 2), (10**9, 0)])
def test_threshold_decides_what_is_offloaded(threshold, host):
    p = make_parameters()
    optimizer = SIMULATED.optimizer(p, min_offload_elements=threshold)
    expected = sum(sorted(q.numel() for q in p)[3 - host :])
    assert optimizer.stats().elements.get("host", 0) == expected
    twins = make_parameters()
    train(optimizer, p, 2)
    train(torch.optim.AdamW(twins, fused=True), twins, 2)
    assert_same(clones(p), clones(twins))


def test_groups_may_have_their_own_formats(place):
    p = make_parameters(place.device, torch.bfloat16)
    optimizer = place.optimizer(
        [{"params": p[:1], "state_format": "bf16"}, {"params": p[1:], "master": "fp32"}]
    )
    train(optimizer, p, 1)
    first, second = optimizer.state[p[0]], optimizer.state[p[2]]
    assert (first["exp_avg"].dtype, first["master"].dtype) == (torch.bfloat16, torch.int16)
    assert (second["exp_avg"].dtype, second["master"].dtype) == (torch.float32, torch.float32)


def test_hyper_lists_and_groups_convert_both_ways():
    for rule in torch.ops.outboard.rules():
        keys = hyper.rule_keys(rule)
        values = list(torch.ops.outboard.hyper_defaults(rule))
        group = hyper.to_group(keys, values)
        assert hyper.to_list(group, keys) == values
        name = rule.removesuffix("Factored")
        cls = getattr(torch.optim, name, None) or getattr(outboard, name)
        theirs = cls([torch.zeros(1)]).defaults
        assert hyper.to_list(theirs, keys) == values


def test_lion_alone_is_a_torch_optimizer():
    p = make_parameters()
    optimizer = outboard.Lion(p, lr=torch.tensor(0.1), weight_decay=0.5)
    before = clones(p)
    train(optimizer, p, 1)
    for q, old in zip(p, before, strict=True):
        torch.testing.assert_close((q - old * 0.95).abs(), torch.full_like(q, 0.1))
    for bad in ({"lr": -1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": float("nan")}):
        with pytest.raises(ValueError, match="Lion"):
            outboard.Lion(p, **bad)


def test_ademamix_alone_is_a_torch_optimizer():
    p = make_parameters()
    optimizer = outboard.AdEMAMix(p, lr=torch.tensor(0.1), alpha=3.0, eps=0.0, weight_decay=0.5)
    before = clones(p)
    train(optimizer, p, 1)
    # The first step's direction is g * (1 + alpha * (1 - beta3)) / |g|.
    for q, old in zip(p, before, strict=True):
        torch.testing.assert_close((q - old * 0.95).abs(), torch.full_like(q, 0.1 * 1.0003))
    assert outboard.AdEMAMix(p, t_alpha=None, t_beta3=None).defaults["t_alpha"] == 0
    for bad in ({"betas": (0.9, 0.999)}, {"alpha": -1.0}, {"t_beta3": float("nan")}):
        with pytest.raises(ValueError, match="AdEMAMix"):
            outboard.AdEMAMix(p, **bad)


def test_lamb_and_lars_alone_move_each_parameter_by_its_norm():
    for cls, trust in ((outboard.LAMB, 1.0), (outboard.LARS, 1e-3)):
        p = make_parameters()
        optimizer = cls(p, lr=torch.tensor(0.1), weight_decay=0.5, eps=0.0)
        before = clones(p)
        train(optimizer, p, 1)
        for q, old in zip(p, before, strict=True):
            moved = (q - old).norm().item()
            if cls is outboard.LAMB:  # |lr * (|p| / |r|) * r|
                assert moved == pytest.approx(0.1 * old.norm().item(), rel=1e-4)
            else:  # decay may cancel or add
                assert 0 < moved <= 0.1 * trust * old.norm().item() * 1.001


def test_max_unorm_clips_the_update_and_leaves_zeros_free_to_move():
    for cls in (outboard.LAMB, outboard.LARS):
        p = make_parameters()
        with torch.no_grad():
            p[0].zero_()
        before = clones(p)
        train(cls(p, lr=1.0, max_unorm=1e-3), p, 1)
        assert p[0].abs().sum() > 0
        for q, old in zip(p[1:], before[1:], strict=True):
            moved = (q - old).norm().item()
            assert moved == pytest.approx(1e-3 * old.norm().item(), rel=1e-3)
        for bad in ({"max_unorm": -1.0}, {"eps": float("nan")}, {"lr": -1.0}):
            with pytest.raises(ValueError, match=cls.__name__):
                cls(p, **bad)
    with pytest.raises(ValueError, match="nesterov"):
        outboard.LARS(p, nesterov=True, dampening=0.5)


def test_build_info_names_the_version():
    assert outboard.build_info()["version"] == outboard.__version__
    assert "cuda" in outboard.build_info()
