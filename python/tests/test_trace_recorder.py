"""Recording a timeline around a training loop."""

import time

import pytest
import torch
from outboard.timeline import read_timeline
from outboard.trace_recorder import TraceRecorder


class FakeEngine:
    """The native engine's part: one host update in the middle of what was traced."""

    def __init__(self):
        self.calls = []

    def start_trace(self):
        self.calls.append("start")
        self.began = time.perf_counter()

    def synchronize(self):
        self.calls.append("synchronize")

    def stop_trace(self):
        self.calls.append("stop")

    def take_trace(self):
        self.calls.append("take")
        now = time.perf_counter() - self.began
        return ["host update"], ["weight"], [now * 0.25], [now * 0.5], [1000]


def make_loop(device="cpu"):
    parameter = torch.nn.Parameter(torch.ones(4, device=device))
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def step():
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    return optimizer, step


def test_recorder_writes_after_the_wished_steps(tmp_path):
    optimizer, step = make_loop()
    engine = FakeEngine()
    recorder = TraceRecorder(optimizer, engine, tmp_path / "trace.json", steps=2)
    step()
    assert not recorder.is_done and not recorder.path.exists()
    step()
    assert recorder.is_done
    assert engine.calls == ["start", "synchronize", "stop", "take"]
    step()
    assert engine.calls == ["start", "synchronize", "stop", "take"]
    content = read_timeline(tmp_path / "trace.json")
    assert content.lanes() == ["steps", "compute", "host update"]
    assert [s.name for s in content.spans if s.lane == "steps"] == ["step 1", "step 2"]
    assert content.info["optimizer"] == "SGD"
    assert [t.number for t in recorder.steps] == [1, 2]
    assert recorder.steps[0].end == recorder.steps[1].begin
    gap = [s for s in content.spans if s.name == "step"]
    assert all(0 < s.begin < s.end for s in gap)


def test_end_of_with_writes_what_there_is(tmp_path):
    optimizer, step = make_loop()
    with TraceRecorder(optimizer, FakeEngine(), tmp_path / "trace.json", steps=100) as recorder:
        step()
    assert [t.number for t in read_timeline(tmp_path / "trace.json").step_times()] == [1]
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_step_pre_hooks
    recorder.stop()


def test_error_in_the_body_is_the_one_that_is_raised(tmp_path):
    optimizer, _ = make_loop()
    engine = FakeEngine()
    engine.take_trace = None  # calling it raises TypeError
    with (
        pytest.raises(KeyError, match="mine"),
        TraceRecorder(optimizer, engine, tmp_path / "trace.json"),
    ):
        raise KeyError("mine")
    assert engine.calls[-1] == "stop"


def test_failed_step_is_no_step(tmp_path):
    optimizer, step = make_loop()

    def fail():
        time.sleep(0.02)  # its length
        return 1 / 0

    with TraceRecorder(optimizer, FakeEngine(), tmp_path / "trace.json", steps=2) as recorder:
        with pytest.raises(ZeroDivisionError):
            optimizer.step(fail)
        step()
    assert [t.number for t in recorder.steps] == [1]
    gaps = [s for s in read_timeline(recorder.path).spans if s.name == "step"]
    assert [gap.begin >= 0.02 for gap in gaps] == [True], "it begins after the failed one"


def test_full_disk_does_not_stop_training(tmp_path):
    optimizer, step = make_loop()
    (tmp_path / "trace.json").mkdir()  # cannot be replaced by a file
    recorder = TraceRecorder(optimizer, FakeEngine(), tmp_path / "trace.json", steps=1)
    with pytest.warns(UserWarning, match=r"trace\.json was not written"):
        step()
    assert recorder.is_done and len(recorder.steps) == 1
    step()


def test_next_trace_begins_only_after_the_last(tmp_path):
    optimizer, step = make_loop()
    first = TraceRecorder(optimizer, FakeEngine(), tmp_path / "1.json", steps=1)
    with pytest.raises(RuntimeError, match=r"1\.json is under way"):
        TraceRecorder(optimizer, FakeEngine(), tmp_path / "2.json")
    step()
    assert first.is_done
    for number in range(3):
        TraceRecorder(optimizer, FakeEngine(), tmp_path / f"{number}.json", steps=1)
        step()
    assert len(optimizer._optimizer_step_post_hooks) == 1, "hooks of earlier traces are gone"


@pytest.mark.parametrize(
    ("path", "steps", "error", "message"),
    [
        ("t.json", 0, ValueError, "steps is 0"),
        ("t.json", 1.5, TypeError, r"steps is 1\.5"),
        ("t.json", True, TypeError, "steps is True"),
        ("no/t.json", 1, FileNotFoundError, "make it first"),
    ],
)
def test_recorder_refuses_bad_wishes_before_it_begins(tmp_path, path, steps, error, message):
    optimizer, _ = make_loop()
    engine = FakeEngine()
    with pytest.raises(error, match=message):
        TraceRecorder(optimizer, engine, tmp_path / path, steps)
    assert engine.calls == []


@pytest.mark.gpu
def test_steps_on_a_gpu_are_measured_in_its_stream(tmp_path):
    optimizer, step = make_loop("cuda")
    with TraceRecorder(optimizer, FakeEngine(), tmp_path / "trace.json", steps=2) as recorder:
        for _ in range(2):
            torch.cuda._sleep(100_000_000)  # at least 30 ms of device work; the host runs ahead
            step()
    assert all(t.seconds > 0.03 for t in recorder.steps)
