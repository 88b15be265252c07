"""The timeline's file, and what its times mean."""

import itertools
import json
import random

import pytest
from outboard import breakdown
from outboard.breakdown import Span
from outboard.timeline import Timeline, read_timeline, to_chrome, write_timeline
from timelines import MS, TWO_STEPS, ms

# ---- The file -----------------------------------------------------------------------------------


def test_file_is_what_a_chrome_viewer_expects(tmp_path):
    write_timeline(Timeline(TWO_STEPS, {"version": "1.2.3"}), tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text())
    assert content["otherData"] == {"version": "1.2.3", "outboard_timeline": "1"}
    rows = {
        e["tid"]: e["args"]["name"] for e in content["traceEvents"] if e["name"] == "thread_name"
    }
    assert list(rows.values()) == [
        "steps",
        "compute",
        "exposed",
        "gradients down",
        "host update",
        "weights up",
        "waits",
    ]
    events = [e for e in content["traceEvents"] if e["ph"] == "X"]
    assert len(events) == len(TWO_STEPS)
    for event in events:
        assert rows[event["tid"]] == event["cat"]
        assert set(event) - {"args"} == {"ph", "name", "cat", "pid", "tid", "ts", "dur"}
    copied = next(e for e in events if e["cat"] == "gradients down")
    assert (copied["ts"], copied["dur"]) == (40_000.0, 50_000.0)
    assert copied["args"] == {"bytes": 2_500_000_000, "GB/s": 50.0}


@pytest.mark.parametrize("seed", range(20))
def test_file_gives_back_what_was_written(tmp_path, seed):
    draw = random.Random(seed)
    spans = []
    for _ in range(200):
        begin = draw.uniform(0, 0.1)
        end = begin + draw.choice([0.0, draw.uniform(0, 0.01)])
        spans.append(
            Span(draw.choice("ab"), draw.choice('äß"\n'), begin, end, draw.getrandbits(40))
        )
    spans.sort(key=lambda s: s.begin)
    write_timeline(Timeline(spans, {"gpu": "none"}), tmp_path / "trace.json")
    back = read_timeline(tmp_path / "trace.json")
    assert back.info == {"gpu": "none"}
    key = lambda s: (s.lane, s.name, s.bytes)  # noqa: E731
    for one, other in zip(sorted(spans, key=key), sorted(back.spans, key=key), strict=True):
        assert key(one) == key(other)
        assert other.begin == pytest.approx(one.begin, abs=1e-9)
        assert other.end == pytest.approx(one.end, abs=2e-9)
    assert back.spans == sorted(back.spans, key=lambda s: s.begin)


def test_events_of_one_row_never_overlap():
    draw = random.Random(1)
    spans = [
        ms("host update", b := draw.uniform(0, 50), b + draw.uniform(0, 3)) for _ in range(300)
    ]
    rows = {}
    for event in to_chrome(Timeline(spans))["traceEvents"]:
        if event["ph"] == "X":
            rows.setdefault(event["tid"], []).append(event)
    assert len(rows) > 1
    for events in rows.values():
        for one, other in itertools.pairwise(events):
            assert one["ts"] + one["dur"] <= other["ts"] + 1e-6


def test_old_file_stays_if_the_new_one_cannot_be_written(tmp_path):
    write_timeline(Timeline(TWO_STEPS), tmp_path / "trace.json")
    before = (tmp_path / "trace.json").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_timeline(
            Timeline([ms("waits", 0, 1)._replace(bytes=1)], {"x": float("nan")}),
            tmp_path / "trace.json",
        )
    with pytest.raises(OSError, match=r"folder/trace.json was not written.*free space"):
        write_timeline(Timeline(TWO_STEPS), tmp_path / "no folder" / "folder" / "trace.json")
    assert (tmp_path / "trace.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]


def event(**changes):
    full = {"ph": "X", "name": "w", "cat": "waits", "pid": 1, "tid": 1, "ts": 1.0, "dur": 2.0}
    return {k: v for k, v in (full | changes).items() if v is not None}


MALFORMED_EVENTS = {
    "no object": (7, "int, not an object"),
    "no phase": (event(ph=None), "ph is None"),
    "no time": (event(ts=None), "ts is None"),
    "time is text": (event(ts="1"), "ts is '1'"),
    "time is a truth": (event(ts=True), "ts is True"),
    "time is not a number": (event(ts=float("nan")), "ts is nan"),
    "time beyond floats": (event(ts=10**400), "ts is 1000"),
    "endless": (event(dur=float("inf")), "dur is inf"),
    "backwards": (event(dur=-1.0), r"dur is -1\.0, below 0"),
    "no lane": (event(cat=None), "cat is None"),
    "name is a number": (event(name=3), "name is 3"),
    "bytes are text": (event(args={"bytes": "1"}), "whole number"),
    "bytes below none": (event(args={"bytes": -1}), "whole number"),
    "args are a list": (event(args=[1]), "whole number"),
}


@pytest.mark.parametrize("case", MALFORMED_EVENTS)
def test_malformed_event_is_named(tmp_path, case):
    bad, message = MALFORMED_EVENTS[case]
    content = {"otherData": {"outboard_timeline": "1"}, "traceEvents": [event(), bad]}
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"bad\.json is no timeline: traceEvents\[1\]: .*{message}"
    ):
        read_timeline(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is no JSON"),
        (b'{"traceEvents": [', "it is no JSON"),
        (b"\xff\xfe\x00", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[]", "no list traceEvents"),
        (b'{"traceEvents": {}}', "no list traceEvents"),
        (b'{"traceEvents": []}', "does not say that outboard wrote it"),
        (b'{"traceEvents": [], "otherData": {"outboard_timeline": "2"}}', "format is '2'"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "bad.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"{message}.*give a file that optimizer.trace"):
        read_timeline(tmp_path / "bad.json")


# ---- What the times mean ------------------------------------------------------------------------


def test_breakdown_of_two_steps_by_hand():
    first, second = breakdown.step_times(TWO_STEPS)
    assert (first.seconds, first.exposed) == pytest.approx((0.1, 0.02))
    down, update = first.lanes["gradients down"], first.lanes["host update"]
    # 80-84 down alone, 84-90 both, 90-98 the update alone, 98-100 nothing.
    assert (down.busy, down.hidden, down.exposed) == pytest.approx((0.05, 0.04, 0.007))
    assert (update.busy, update.hidden, update.exposed) == pytest.approx((0.014, 0.0, 0.011))
    assert first.other == pytest.approx(0.002)
    assert down.gb_per_s == pytest.approx(50)
    assert str(first) == (
        "step 1: 100.0 ms, exposed 20.0 (host update 11.0, gradients down 7.0, other 2.0), "
        "hidden (gradients down 40.0)"
    )
    assert set(second.lanes) == {"weights up"}
    assert second.exposed_text() == "step 2: 100.0 ms, exposed 10.0 (weights up 5.0, other 5.0)"


@pytest.mark.parametrize("seed", range(50))
def test_shares_add_up_to_the_exposed_time(seed):
    draw = random.Random(seed)
    spans = [ms("steps", 0, 100), ms("steps", 100, 150)]
    for lane in (*breakdown.CAUSES, "exposed"):
        for _ in range(draw.randrange(30)):
            begin = draw.randrange(-10, 160)
            spans.append(ms(lane, begin, begin + draw.randrange(8)))
    for step in breakdown.step_times(spans):
        shares = sum(lane.exposed for lane in step.lanes.values())
        assert shares + step.other == pytest.approx(step.exposed)
        for lane in step.lanes.values():
            assert lane.busy - lane.hidden - lane.exposed >= -1e-12
            assert lane.busy <= step.seconds + 1e-12


def test_work_that_crosses_a_step_counts_in_both():
    steps = breakdown.step_times(
        [ms("steps", 0, 100), ms("steps", 100, 200), ms("state up", 90, 120, moved=300)]
    )
    first, second = (step.lanes["state up"] for step in steps)
    assert (first.busy, first.bytes) == pytest.approx((0.01, 100))
    assert (second.busy, second.bytes) == pytest.approx((0.02, 200))


def test_without_the_lane_exposed_the_gaps_after_backward_are_exposed():
    spans = [s for s in TWO_STEPS if s.lane != "exposed"]
    assert [s.exposed for s in breakdown.step_times(spans)] == pytest.approx([0.02, 0.01])


def test_caller_spans_divide_by_backward_and_keep_the_engines_compute():
    made = breakdown.caller_spans([ms("backward", 3, 7)], [8 * MS, 15 * MS], [10 * MS, 16 * MS])
    assert made == [
        ms("steps", 0, 10, "step 1"),
        ms("compute", 0, 3, "forward"),
        ms("compute", 3, 8, "backward"),
        ms("compute", 8, 10, "step"),
        ms("steps", 10, 16, "step 2"),
        ms("compute", 10, 15, "forward and backward"),
        ms("compute", 15, 16, "step"),
    ]
    made = breakdown.caller_spans([ms("compute", 0, 1, "forward")], [MS], [2 * MS])
    assert made == [ms("steps", 0, 2, "step 1")]
