"""A process that is killed in the middle of updates loses nothing that was saved: in every schedule
the run that goes on from its checkpoint has the bits of one that was never killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import assert_same

SCRIPT = Path(__file__).with_name("killed_training.py")


def run(path, schedule, placement, killed_after=0):
    arguments = [str(path), schedule, placement, "7", str(killed_after)]
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run.pt"
    done = run(path, "at_step", "host")
    assert done.returncode == 0, done.stderr
    return torch.load(f"{path}.weights", weights_only=True)


@pytest.mark.parametrize(
    ("schedule", "placement"),
    [("at_step", "streamed"), ("next_forward", "host"), ("in_backward", "streamed")],
)
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path, uninterrupted, schedule, placement):
    path = tmp_path / "run.pt"
    killed = run(path, schedule, placement, killed_after=5)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert path.exists()
    resumed = run(path, schedule, placement)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(torch.load(f"{path}.weights", weights_only=True), uninterrupted)
