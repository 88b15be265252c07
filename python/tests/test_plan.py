"""The planner from Python and from the command line: known figures, budgets, JSON, bad input."""

import json
from dataclasses import replace

import pytest
import torch
from outboard import plan
from outboard.model_shape import shape_of_config, shape_of_size
from outboard.plan import KNOWN_MACHINES, Machine, PlanWish, make_plan

click_testing = pytest.importorskip("click.testing")
pytest.importorskip("rich")

from outboard.cli import main  # noqa: E402

H200 = KNOWN_MACHINES["h200"]
WISH = PlanWish(state_format="8bit", forward_s=0.157, backward_s=0.471)
GPT = shape_of_size(2.65e9)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def run(*arguments):
    wide = {"COLUMNS": "160"}
    return click_testing.CliRunner(env=wide).invoke(main, [str(a) for a in arguments])


def planned(*arguments):
    """The JSON that `outboard plan` prints for a GPT of 2.65e9 parameters on an H200."""
    result = run("plan", "--parameters", 2.65e9, "--machine", "h200", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.mark.parametrize(
    ("placement", "state_format", "measured"),
    [("host", "8bit", 0.657), ("host", "fp32", 0.984), ("streamed", "8bit", 0.651)],
)
def test_known_iterations_within_15_percent(placement, state_format, measured):
    wish = replace(
        WISH,
        state_format=state_format,
        placement=placement,
        schedule="in_backward",
        needs_norm=False,
        is_attached=False,
    )
    assert make_plan(GPT.elements, H200, wish).iteration_s == pytest.approx(measured, rel=0.15)


def test_every_field_of_a_wish_reaches_the_model():
    base = make_plan(GPT.elements, H200, WISH)
    different = {
        "rule": "Lion",
        "state_format": "4bit",
        "dtype": "float32",
        "master": "stochastic",
        "forward_s": 0.3,
        "backward_s": 0.9,
        "accumulation_steps": 4,
        "needs_norm": False,
        "redo_rate": 1.0,
        "offload_gradients": False,
        "is_attached": False,
        "device_state_bytes": 10**9,
        "device_bytes": 0,
        "host_bytes": 10**9,
        "schedule": "at_step",
        "placement": "host",
    }
    limits = {"device_bytes", "host_bytes"}
    assert set(different) == {*WISH.numbers(), *WISH.words(), *limits}
    # Something to compare with in which each of them matters.
    other = replace(WISH, schedule="in_backward", placement="streamed")
    for name, value in different.items():
        kept = WISH if name in ("schedule", "placement", "redo_rate") else other
        if name == "is_attached":
            kept = replace(WISH, schedule="next_forward")
        if name == "offload_gradients":
            kept = replace(WISH, schedule="at_step", placement="host")
        changed = make_plan(GPT.elements, H200, replace(kept, **{name: value}))
        assert changed != (base if kept is WISH else make_plan(GPT.elements, H200, kept)), name


def test_bytes_are_those_of_the_design():
    wish = replace(WISH, state_format="fp32", placement="host", schedule="at_step")
    result = make_plan([10**9], H200, wish)
    assert result.bytes["host_weights"] == 2 * 10**9
    assert result.bytes["host_masters"] == 2 * 10**9
    assert result.bytes["host_state"] == 8 * 10**9
    assert result.bytes["host_gradients"] == 2 * 10**9
    assert result.host_bytes == sum(v for k, v in result.bytes.items() if k.startswith("host_"))
    assert result.device_bytes == sum(v for k, v in result.bytes.items() if k.startswith("device_"))


def test_split8_masters_take_a_byte_less():
    wish = replace(WISH, placement="streamed", master="split")
    split = make_plan([10**9], H200, wish)
    split8 = make_plan([10**9], H200, replace(wish, master="split8"))
    assert split8.bytes["host_masters"] == split.bytes["host_masters"] - 10**9
    assert split8.iteration_s < split.iteration_s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "sometime"}, "schedule is 'sometime'"),
        ({"placement": "cloud"}, "placement is 'cloud'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"master": "gold"}, "master is 'gold'"),
        ({"rule": "AdamX"}, "AdamX"),
        ({"state_format": "9bit"}, "9bit"),
        ({"backward_s": -1.0}, "backward_s is -1"),
        ({"redo_rate": 2.0}, "redo_rate 2"),
    ],
)
def test_bad_wishes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_plan(GPT.elements, H200, replace(WISH, **change))


def test_no_parameters_and_empty_parameters_are_refused():
    for elements in ([], [0], [-5]):
        with pytest.raises(ValueError, match=r"0 (parameters|elements)"):
            make_plan(elements, H200, WISH)


def test_a_machine_survives_a_file(tmp_path):
    H200.save(tmp_path / "machine.json")
    assert Machine.load(tmp_path / "machine.json") == H200


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"link_down": "fast"}', '{"wheels": 4}'])
def test_a_file_that_is_no_machine_is_refused(tmp_path, content):
    path = tmp_path / "machine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"machine\.json does not describe a machine"):
        Machine.load(path)


def test_measured_once_per_process():
    first = plan.measured_machine(state_formats=("8bit",), simulate=(0, 0, 0))
    assert first is plan.measured_machine(state_formats=("8bit",), simulate=(0, 0, 0))
    assert first.link_down > 0
    assert first.host_bandwidth > 0
    assert list(first.updates) == ["AdamW 8bit split"]


def test_correction_gives_what_was_measured():
    wish = replace(WISH, schedule="at_step", placement="host")
    before = make_plan(GPT.elements, H200, wish)
    machine, better = plan.corrected(
        GPT.elements, H200, wish, {"iteration_s": 1.3, "forward_backward_s": 0.7}
    )
    assert better.forward_s + better.backward_s == pytest.approx(0.7)
    after = make_plan(GPT.elements, machine, better)
    assert after.iteration_s == pytest.approx(1.3)
    assert after.iteration_s != pytest.approx(before.iteration_s)


def test_a_size_gives_a_gpt_of_that_size():
    for parameters in (124e6, 2.65e9, 6.65e9, 70e9):
        assert shape_of_size(parameters).parameters == pytest.approx(parameters, rel=0.01)
    assert (GPT.hidden, GPT.layers) == (2560, 32)
    with pytest.raises(ValueError, match="give 1e6"):
        shape_of_size(5)


def config_file(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_configurations_give_the_known_counts(tmp_path):
    llama = shape_of_config(config_file(tmp_path, LLAMA))
    assert llama.parameters == 6_738_415_616
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    shape = shape_of_config(config_file(tmp_path, gpt2 | {"n_positions": 1024}))
    assert shape.parameters == pytest.approx(124_439_808, rel=0.002)  # biases are left out
    mixtral = LLAMA | {
        "model_type": "mixtral",
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    shape = shape_of_config(config_file(tmp_path, mixtral))
    assert shape.parameters == 46_702_792_704
    assert shape.active_parameters == pytest.approx(12.88e9, rel=0.001)


def test_a_configuration_without_sizes_is_refused(tmp_path):
    path = config_file(tmp_path, {"model_type": "llama", "vocab_size": 32000})
    result = run("plan", "--config", path, "--machine", "h200")
    assert result.exit_code == 1
    assert "hidden_size" in result.output


def test_json_holds_the_choice_and_every_alternative():
    content = planned("--compute-ms", 628)
    assert content["model"]["parameters"] == pytest.approx(2.65e9, rel=0.01)
    assert content["wish"]["backward_s"] == pytest.approx(0.471)
    choices = {(p["schedule"], p["elements"]["host"] > 0) for p in content["alternatives"]}
    assert len(content["alternatives"]) == 9
    assert {schedule for schedule, _ in choices} == set(plan.SCHEDULES)
    best = content["plan"]["iteration_s"]
    assert best <= min(p["iteration_s"] for p in content["alternatives"]) * 1.011
    assert content["plan"]["reasons"]


def test_tokens_give_forward_and_backward():
    short, long = planned("--tokens", 8192), planned("--tokens", 16384)
    assert long["wish"]["forward_s"] == pytest.approx(2 * short["wish"]["forward_s"])
    assert long["wish"]["forward_s"] * 4 == pytest.approx(0.628, rel=0.15)
    plain = planned("--no-recompute")
    assert plain["wish"]["backward_s"] == pytest.approx(2 * plain["wish"]["forward_s"])


def test_budgets_are_kept():
    content = planned("--host-memory", "18GB", "--device-state", "2GiB")
    assert content["plan"]["fits"]
    assert content["plan"]["host_bytes"] <= 18e9
    assert 1.8e9 < content["plan"]["bytes"]["device_state"] <= 2 * 2**30
    assert not planned("--host-memory", "1GB")["plan"]["fits"]


def test_the_table_shows_choice_reasons_and_bytes():
    result = run("plan", "--parameters", 2.65e9, "--machine", "h200")
    assert result.exit_code == 0, result.output
    for text in (
        "next_forward",
        "streamed 100%",
        "chose schedule",
        "bounded by",
        "host memory, GB",
    ):
        assert text in result.output


def test_machine_may_be_a_file_and_is_saved(tmp_path):
    path, again = tmp_path / "machine.json", tmp_path / "again.json"
    replace(H200, link_duplex=10e9).save(path)
    result = run(
        *("plan", "--parameters", 1e9, "--machine", path, "--save-machine", again, "--json")
    )
    assert json.loads(result.output)["machine"]["link_duplex"] == 10e9
    assert Machine.load(again) == Machine.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --parameters or --config"),
        (["--parameters", "1e9", "--machine", "nowhere.json"], "no file nowhere.json"),
        (["--parameters", "1e9", "--machine", "h200", "--host-memory", "lots"], "is no size"),
        (["--parameters", "3", "--machine", "h200"], "give 1e6"),
        (["--parameters", "1e9", "--machine", "h200", "--optimizer", "AdamX"], "AdamX"),
        (
            ["--parameters", "70e9", "--machine", "h200", "--device-memory", "80GB"],
            "fewer --tokens",
        ),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    result = run("plan", *arguments)
    assert result.exit_code != 0
    assert message in result.output


def test_without_a_gpu_a_machine_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("plan", "--parameters", 1e9)
    assert result.exit_code == 1
    assert "--machine h200" in result.output


@pytest.mark.gpu
def test_measures_this_machine(tmp_path):
    path = tmp_path / "machine.json"
    result = run("plan", "--parameters", 1e9, "--save-machine", path, "--json")
    assert result.exit_code == 0, result.output
    machine = Machine.load(path)
    assert machine.flops > 1e12
    assert machine.device_bandwidth > machine.link_down
