"""`outboard timeline`: what it prints, draws and refuses."""

import sys

import pytest
from click.testing import CliRunner
from outboard.cli_timeline import timeline as command
from outboard.timeline import Timeline, write_timeline
from timelines import TWO_STEPS, ms


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture
def trace_file(tmp_path):
    write_timeline(Timeline(TWO_STEPS, {"version": "1.2.3"}), tmp_path / "trace.json")
    return tmp_path / "trace.json"


def test_command_draws_a_picture_with_exposed_time_in_red(trace_file, tmp_path):
    from matplotlib.image import imread

    done = run(trace_file, "-o", tmp_path / "all.png")
    assert done.exit_code == 0, done.output
    assert "step 1: 100.0 ms, exposed 20.0 (host update 11.0" in done.output
    picture = imread(tmp_path / "all.png")[:, :, :3]
    assert picture.shape[1] > 1000
    is_red = abs(picture - [0xD6 / 255, 0x27 / 255, 0x28 / 255]).max(axis=2) < 0.01
    columns = is_red[: picture.shape[0] // 2].any(axis=0)
    assert 0.05 < columns.mean() < 0.2, "30 of 200 ms, and the axes take three quarters"


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_command_draws_other_kinds(trace_file, tmp_path, kind):
    done = run(trace_file, "-o", tmp_path / f"picture.{kind}", "--steps", "2")
    assert done.exit_code == 0, done.output
    assert (tmp_path / f"picture.{kind}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("steps", "shown"), [("1", [1]), ("2:", [2]), (":1", [1]), ("1:2", [1, 2]), (":", [1, 2])]
)
def test_command_chooses_steps(trace_file, steps, shown):
    done = run(trace_file, "--steps", steps)
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.output.splitlines()] == [
        f"step {number}" for number in shown
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("3:4", "3:4 are not among the 2 traced ones"),
        ("0", "count from 1"),
        ("2:1", "holds no steps"),
        ("a:b", "give FIRST:LAST"),
        ("", "give FIRST:LAST"),
    ],
)
def test_command_refuses_steps_that_are_none(trace_file, steps, message):
    done = run(trace_file, "--steps", steps)
    assert done.exit_code != 0
    assert message in done.output


def test_command_says_what_is_wrong(trace_file, tmp_path, monkeypatch):
    (tmp_path / "bad.json").write_text("{}")
    write_timeline(Timeline([]), tmp_path / "empty.json")
    cases = [
        ((tmp_path / "bad.json",), "bad.json is no timeline"),
        ((tmp_path / "missing.json",), "does not exist"),
        ((trace_file, "-o", tmp_path / "p.xyz"), "give a .png, .pdf or .svg"),
        ((trace_file, "-o", tmp_path / "no" / "p.png"), "No such file"),
        ((tmp_path / "empty.json", "-o", tmp_path / "p.png"), "the trace is empty"),
    ]
    for arguments, message in cases:
        done = run(*arguments)
        assert done.exit_code != 0 and message in done.output, (arguments, done.output)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run(trace_file, "-o", tmp_path / "p.png")
    assert done.exit_code == 1 and "pip install 'outboard[cli]'" in done.output


def test_a_trace_without_a_whole_step_is_drawn_too(tmp_path):
    write_timeline(Timeline([ms("waits", 1, 2)]), tmp_path / "trace.json")
    done = run(tmp_path / "trace.json", "-o", tmp_path / "p.png")
    assert done.exit_code == 0 and "no whole step" in done.output
    assert (tmp_path / "p.png").exists()
